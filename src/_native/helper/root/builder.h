/* What the files that build a root share. */
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
  int root;         /* the new root once an overlay or source stands at / */
  int upper;        /* the upper directory being prepared, or -1 */
  int work;
  u64 dev;          /* mount ids of /dev and /sys */
  u64 sys;
  u32 uppers;       /* how many were made: their directories are numbered */
  char upper_path[48];
  char work_path[48];
};

/* Open path beneath root, making what is missing; a symbolic link is followed inside or refused. */
int pc_make_path (int root, const char *path, int nofollow, int as_file);
int pc_make_base (struct builder *b);
/* Where the root is attached. */
const char *pc_place_of_root (const struct builder *b);
/* Attach a detached mount at the operation's target; "/" becomes the root itself. */
int pc_attach (struct builder *b, const struct pc_op *op, int mount);
int pc_do_upper (struct builder *b, const struct pc_op *op);
int pc_do_file (struct builder *b, const struct pc_op *op);
int pc_do_sys (struct builder *b, const struct pc_op *op);
int pc_do_overlay (struct builder *b, const struct pc_op *op);

#endif
