"""Fault injection: each system call on the way to a guest's execve fails once, and the start fails closed.

Four processes take part.  The command plans and judges.  The *lab* is a child with an engine of its own, in
which one start, two execs and the end go on.  The *tracer* is the lab's child and, by ptrace(2), makes one
system call of one process fail, come late, or be its last.  And there is the launcher with what it starts.

strace's `--inject=...:when=N` counts for each process by itself, so that the launcher's third openat would
hide the child's third; here an aim names the process too.

Run it: `python -m tests.security.inject [--quick] [--seconds S]`.
"""
