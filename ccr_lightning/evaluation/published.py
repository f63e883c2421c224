"""What others report: the zero-shot block of Table 1 of Nie et al., KDD 2024 (arXiv 2406.18254)."""

from __future__ import annotations

_COLUMNS = (
    ("xFlickr&CO", "IR"),
    ("xFlickr&CO", "TR"),
    ("xFlickr&CO", "MRV"),
    ("WIT", "IR"),
    ("WIT", "TR"),
    ("Multi30K", "en"),
    ("Multi30K", "de"),
    ("Multi30K", "fr"),
    ("Multi30K", "cs"),
    ("Multi30K", "MRV"),
    ("COCO", "en"),
    ("COCO", "zh"),
    ("COCO", "ja"),
)
_ROWS = {
    "xUNITER": "14.04 13.51 50.60 8.72 9.81 - - - - - - - -",
    "M³P": "12.91 11.90 54.58 8.12 9.98 87.4 58.5 46.0 36.8 15.38 88.6 53.8 56.0",
    "UC²": "20.31 17.89 21.52 7.83 9.09 87.2 74.9 74.0 67.9 6.16 88.1 82.0 71.7",
    "TD-MML": "21.30 26.35 - 9.76 10.61 - - - - - - - -",
    "CCLM-3M": "64.47 62.74 13.27 - - 90.4 89.9 89.4 88.1 3.18 92.3 90.4 87.3",
    "CCR^6": "29.16 28.72 15.02 6.78 8.73 88.5 87.1 87.8 85.7 3.06 91.6 89.6 86.0",
    "CCR^6-E": "32.89 33.06 7.97 6.44 8.34 90.8 90.3 91.0 89.4 1.28 92.5 91.4 89.4",
    "CCR^10": "55.45 54.88 18.96 9.94 11.73 84.2 82.5 81.9 80.8 4.13 90.0 88.0 81.7",
    "CCR^10-E": "73.30 72.64 7.89 11.11 12.62 91.4 90.7 91.3 89.8 2.53 92.5 91.4 89.3",
}


def published_rows() -> dict[str, dict[tuple[str, str], float]]:
    """Return model to column (benchmark, number) to the published number, without those that are not reported.

    Example:
        >>> rows = published_rows()
        >>> rows["CCR^10-E (published)"]["xFlickr&CO", "IR"], ("WIT", "IR") in rows["CCLM-3M (published)"]
        (73.3, False)
    """
    return {
        f"{model} (published)": {
            column: float(value) for column, value in zip(_COLUMNS, row.split(), strict=True) if value != "-"
        }
        for model, row in _ROWS.items()
    }
