"""An index behind a local web page, and the JSON that the page reads."""
