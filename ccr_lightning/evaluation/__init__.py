"""From ranks to results: the numbers, the JSON document, the table, and re-ranking."""
