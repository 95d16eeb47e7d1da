"""Records as a person reads them: each module makes the sections of a page from what a benchmark wrote as JSON.

The first sentence of a page is the question that it answers, the first table the answer, and settings stand below.
`python benches/records.py` writes all pages again from their data, without measuring anything.
"""
