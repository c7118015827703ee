/* Interface of the walk through the lower layers. */
#ifndef PC_LOWERS_H
#define PC_LOWERS_H

#include "unpack.h"

struct pc_walk
{
  int dir;          /* an fd, -ENOENT, or another negative errno */
  int hidden;       /* no lower layer is visible through it */
  int hidden_above; /* by one of the directories on the way */
  int other;        /* a file or a link lies on the way */
};

/* Open directories of the last path in each layer. Noted paths are sorted, mostly one step apart; a walk from the
   top for each would take minutes for a path of 2000 parts. */
struct pc_cursor
{
  char path[PC_TAR_NAME_MOST];
  u32 ready;
  struct pc_walk walks[COUNT (((struct pc_fds *) 0)->fd) + 1]; /* the layer's own, then the lower ones */
};

extern struct pc_cursor pc_cursor;

/* Follow a path of directories in one layer, from its top. */
struct pc_walk pc_walk_layer (int layer, const char *path);
/* Open the directories at a path in this layer and in the lower ones. */
void pc_move_cursor (const struct pc_unpack *unpack, const int *lowers, u32 count, const char *path);
/* Find the visible lower directory at a path: a borrowed fd, -ENOENT, or -ELOOP for another kind of file. */
int pc_find_below (const struct pc_unpack *unpack, const int *lowers, u32 count, const char *path);
void pc_forget_cursor (u32 count);

#endif
