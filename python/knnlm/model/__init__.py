"""Any language model as the method needs it: loaded, checked, run over text, and its keys captured."""
