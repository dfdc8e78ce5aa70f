"""Many runs, arms x seeds: run, tabulated, compared, and what may be claimed of them."""
