"""What `drpo-bench doctor` looks at: machine, devices, packages, and what follows from them."""
