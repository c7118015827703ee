/* For user-mode-linux before 6.11 on processors whose extended state is larger than its buffer (AMX): the kernel
   takes a register set only at its full size (errno 14), so what the guest has no room for stays as it is.  */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define LARGEST (64 << 10)

typedef long call (int, pid_t, void *, void *);

long
ptrace (enum __ptrace_request request, ...)
{
  static call *next;
  static char whole[LARGEST];
  va_list rest;

  va_start (rest, request);
  pid_t pid = va_arg (rest, pid_t);
  void *address = va_arg (rest, void *);
  void *data = va_arg (rest, void *);
  va_end (rest);
  if (next == NULL)
    next = (call *) dlsym (RTLD_NEXT, "ptrace");
  long result = next ((int) request, pid, address, data);
  if (result == 0 || request != PTRACE_SETREGSET || (long) address != NT_X86_XSTATE
      || (errno != EFAULT && errno != EINVAL))
    return result;
  const struct iovec *given = data;
  struct iovec all = { whole, sizeof whole };
  if (next (PTRACE_GETREGSET, pid, address, &all) != 0 || given->iov_len > all.iov_len)
    return result;
  memcpy (whole, given->iov_base, given->iov_len);
  return next (PTRACE_SETREGSET, pid, address, &all);
}
