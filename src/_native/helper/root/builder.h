/* Internal interface of the builder of roots. */
#ifndef PC_BUILDER_H
#define PC_BUILDER_H

#include "helper/root.h"
#include "mountapi.h"

struct builder
{
  const struct pc_launcher *launcher;
  const struct pc_plan *plan;
  struct pc_child_fds *fds;
  struct pc_root *made;
  int root;  /* the new root, once an overlay or source is attached at "/" */
  int upper; /* the upper directory being prepared, or -1 */
  int work;
  u64 dev; /* mount ids of /dev and /sys */
  u64 sys;
  u32 uppers; /* number of upper directories made; it names the next one */
  char upper_path[48];
  char work_path[48];
};

/* Open a path beneath root with these flags of open(2).  Links are followed within root, or refused. */
int pc_resolve (int root, const char *path, int nofollow, u64 flags);
/* Open a path beneath root as O_PATH, and make the directories, and the file, that are missing. */
int pc_make_path (int root, const char *path, int nofollow, int as_file);
/* Open the target of an operation, made if it is missing.  -ELOOP where a link leads to a mount of the engine. */
int pc_open_target (const struct builder *b, const struct pc_op *op);
/* Under Landlock, attach the mount to which the root is attached.  A no-op once it is there. */
int pc_make_base (struct builder *b);
/* Path to which the root is attached. */
const char *pc_place_of_root (const struct builder *b);
/* Attach a detached mount to the target of an operation; at "/" it becomes the root. */
int pc_attach (struct builder *b, const struct pc_op *op, int mount);
int pc_do_upper (struct builder *b, const struct pc_op *op);
int pc_do_file (struct builder *b, const struct pc_op *op);
int pc_do_own_directory (struct builder *b, const struct pc_op *op);
int pc_do_sys (struct builder *b, const struct pc_op *op);
int pc_do_overlay (struct builder *b, const struct pc_op *op);

#endif
