"""The page that shows why: what is on it, what cannot get out of it, and how it looks and answers in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from tiny_lm import Doc, tiny

from knnlm.build.dump import dump
from knnlm.knn_lm import KNNLM
from knnlm.model.key_spec import KeySpec
from knnlm.reference import BruteForceStore
from knnlm.report.why_page import why_page

EVIL = "</script><script>document.title='broken'</script>\x1b[31m\u202e<!--"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(scope="module")
def explained():
    loaded = tiny()
    store = BruteForceStore(16)
    texts = [Doc(EVIL, "the cat sat on the mat.\nand a dog"), Doc("other", "the dog sat. " * 3)]
    dump(loaded, texts, store, keys=KeySpec(key_dtype="float32"))
    lm = KNNLM(loaded, store, lambda_=0.5, temperature=1.0, k=8)
    return loaded, [
        lm.explain(Doc(name, text), exclude="none") for name, text in ((EVIL, texts[0].text), ("b", "a cat"))
    ]


@pytest.fixture(scope="module")
def page(explained):
    loaded, found = explained
    return why_page(EVIL, {EVIL: EVIL}, found, loaded.tokenizer, neighbors=4)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_has_every_token_with_its_numbers_and_neighbors(explained, page):
    data = data_of(page)
    for one, text in zip(explained[1], data["texts"], strict=True):
        assert "".join(token[0] for token in text["tokens"]) == explained[0].tokenizer.decode(one.tokens)
        for t, (_, lm, knn, p, bits, near) in enumerate(text["tokens"]):
            assert lm == pytest.approx(one.p_lm[t], rel=1e-3)
            assert p == pytest.approx(one.p[t], rel=1e-3)
            assert knn == pytest.approx(one.p_knn[t], rel=1e-3)
            assert bits == pytest.approx(np.log2(one.p[t] / one.p_lm[t]), abs=2e-3)
            assert [data["entries"][n[0]][0] for n in near] == one.neighbors.ids[t, :4].tolist()
            assert [n[2] for n in near] == pytest.approx(one.weights[t, :4].tolist(), rel=1e-3)
            assert [bool(n[3]) for n in near] == (one.neighbors.values[t, :4] == one.tokens[t]).tolist()
            assert all(n[4] is not None for n in near)
    names = {entry[1] for entry in data["entries"]}
    assert "other" in names


def test_nothing_of_others_gets_out_of_its_place(page):
    assert page.count("<script") == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "documents that mattered" in page.lower()


def test_documents_are_summed(explained, page):
    table = page.split("Documents that mattered")[1]
    share = sum(float((one.weights * (one.documents == 1)).sum()) for one in explained[1])
    assert f'<td class="n">{share:.1f}</td>' in table
    assert f"{sum(map(len, explained[1])):,} tokens above" in table


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_a_browser_draws_it_and_answers_keys(page, tmp_path):
    path = tmp_path / "page.html"
    script = """<script>
    addEventListener("load", () => {
      const texts = document.getElementById("texts"), press = (key, shiftKey) =>
        texts.dispatchEvent(new KeyboardEvent("keydown", {key, shiftKey, bubbles: true, cancelable: true}));
      const at = () => document.querySelector("[aria-current]")?.dataset.i;
      const seen = [document.querySelectorAll(".t").length];
      press("ArrowRight"); seen.push(at()); press("ArrowRight"); seen.push(at()); press("End"); seen.push(at());
      press("Home"); press("ArrowDown"); seen.push(at() !== "0"); press("ArrowRight", true);
      document.querySelectorAll(".t")[3].click(); seen.push(at());
      const panel = document.getElementById("panel");
      seen.push(panel.querySelectorAll("li").length, panel.querySelectorAll("svg circle").length);
      document.querySelector("input[value=p]").click();
      seen.push(document.querySelectorAll(".t")[3].style.getPropertyValue("--c") !== "");
      press("Escape"); seen.push(at() ?? "none");
      document.title = JSON.stringify(seen);
    });
    </script>"""
    path.write_text(page.replace("</body>", script + "</body>"))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=3000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-1000:]
    count = sum(len(text["tokens"]) for text in data_of(page)["texts"])
    assert json.loads(title[1]) == [count, "0", "1", str(count - 1), True, "3", 4, 4, True, "none"]
