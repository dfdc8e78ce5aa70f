"""Run folders -> tables, charts and one self-contained HTML page."""
