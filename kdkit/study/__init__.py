"""Many runs: studies, trials and the processes that run them."""
