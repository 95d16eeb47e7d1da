"""What people see of numbers: progress, plots, pages."""
