"""Many pictures: jobs, the run over files and devices, its report."""
