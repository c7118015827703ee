/* File descriptors that a child keeps, moves and closes. */
#include "wire.h"

#include <linux/fcntl.h>

void
pc_close_fds (struct pc_fds *fds)
{
  for (u32 i = 0; i < fds->count; i++)
    if (fds->fd[i] >= 0)
      sys_close (fds->fd[i]);
  fds->count = 0;
}

int
pc_move_fd (int fd, int to, int flags)
{
  if (fd == to)
    {
      word result = sys_fcntl (fd, F_SETFD, flags & O_CLOEXEC ? FD_CLOEXEC : 0);
      return result < 0 ? (int) result : to;
    }
  return (int) sys_dup3 (fd, to, flags);
}

int
pc_set_stdio (const int fds[3])
{
  for (int i = 0; i < 3; i++)
    {
      int error = pc_move_fd (fds[i], i, 0);
      if (error < 0)
        return error;
    }
  /* Nothing but the three streams may cross, whatever is open by then. */
  return (int) sys_close_range (3, ~0u, CLOSE_RANGE_CLOEXEC_);
}

int
pc_close_all_but (const int *kept, u32 count)
{
  u32 from = 3;
  for (;;)
    {
      u32 next = ~0u;
      for (u32 i = 0; i < count; i++)
        if (kept[i] >= (int) from && (u32) kept[i] < next)
          next = (u32) kept[i];
      word error = next == from ? 0 : sys_close_range (from, next == ~0u ? ~0u : next - 1, 0);
      if (error < 0)
        return (int) error;
      if (next == ~0u)
        return 0;
      from = next + 1;
    }
}
