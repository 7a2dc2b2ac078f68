"""Many runs: a grid of settings, their comparison."""
