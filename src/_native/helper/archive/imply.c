/* Directories that a path needs and no entry named. */
#include "unpack.h"

#include <linux/errno.h>

/* Copy the link that the lower layers have at a path, so that both resolve alike: 1, or 0 if they have none. */
static word
copy_link (struct pc_unpack *unpack, int above, const char *path, const char *name)
{
  static char target[PC_TAR_NAME_MOST];
  struct pc_stat found = { 0 };
  word error = unpack->lowers.count == 0 ? 0 : pc_lower_link (unpack, path, name, target, &found);

  if (error != 1)
    return error;
  i64 times[4] = { found.seconds, found.nanoseconds, found.seconds, found.nanoseconds };
  error = sys_symlinkat (target, above, name);
  if (error == 0 && (unpack->flags & PC_UNPACK_OWNERS))
    error = sys_fchownat (above, name, pc_unpack_id (unpack, found.uid), pc_unpack_id (unpack, found.gid),
                          AT_SYMLINK_NOFOLLOW_);
  if (error == 0)
    error = sys_utimensat (above, name, times, AT_SYMLINK_NOFOLLOW_);
  if (error == 0 && ++unpack->report.implied + unpack->report.entries > unpack->max_entries)
    error = -EDQUOT;
  return error < 0 ? error : 1;
}

word
pc_tree_imply (struct pc_unpack *unpack, int above, const char *path, const char *name)
{
  struct pc_stat there;
  int hides = 0;
  word error = pc_tree_stat (above, name, &there);

  if (error == 0 && there.is_whiteout)
    {
      error = pc_tree_clear (above, name);
      hides = 1;
    }
  else if (error == 0)
    error = -ENOTDIR;
  else if (error == -ENOENT)
    {
      error = copy_link (unpack, above, path, name);
      if (error != 0)
        return error < 0 ? error : 0;
    }
  if (error == 0)
    error = sys_mkdirat (above, name, hides ? 0755 : PC_IMPLIED_MODE);
  if (error == 0 && hides)
    error = pc_tree_mark_opaque (unpack, above, name, path);
  /* A directory in the place of a whiteout of this layer hides the lower layers. */
  return error < 0 ? error : pc_tree_note (unpack, path, 0, 0, hides ? PC_NOTED_NAMED : PC_NOTED_IMPLIED);
}
