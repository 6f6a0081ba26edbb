"""Small processes of the benchmarks: what is watched, who watches beside the guard, and who loads the web."""
