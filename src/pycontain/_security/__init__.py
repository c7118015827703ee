"""Controls inside a container: system call filters, capabilities, Landlock, counters."""
