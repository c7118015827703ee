/* seccomp filters. */
#include "controls.h"

#include <linux/filter.h>
#include <linux/seccomp.h>

int
pc_install_filter (const void *filter, u32 count)
{
  struct sock_fprog program = {
    .len = (u16) count,
    .filter = (struct sock_filter *) (usize) filter,
  };
  return (int) raw3 (__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}
