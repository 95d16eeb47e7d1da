"""What the package asks of the machine: files that appear whole, memory, JSON, and text that a terminal can show."""
