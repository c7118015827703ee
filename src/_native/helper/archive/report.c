/* Reports of the unpacker and the packer. */
#include "unpack.h"

#include <linux/errno.h>

void
pc_report_name (struct pc_unpack_report *report, const char *name)
{
  usize n = pc_strlen (name);
  if (n > sizeof report->name - 1)
    n = sizeof report->name - 1;
  memcpy (report->name, name, n);
  report->name[n] = '\0';
}

int
pc_unpack_failed (struct pc_unpack *unpack, u32 problem, word error)
{
  unpack->report.problem = problem;
  unpack->report.error = (i32) -error;
  return -(int) problem;
}

int
pc_unpack_crosses (struct pc_unpack *unpack, u32 problem, word error)
{
  if (unpack->lowers.count == 0 && (error == 0 || error == -ENOENT || error == -ENOTDIR))
    unpack->report.flags |= PC_UNPACK_CROSSES;
  return pc_unpack_failed (unpack, problem, error);
}
