"""The subcommands of `detrpose`: only arguments and `main`."""
