/* Internal interface of the unpacker. */
#ifndef PC_UNPACK_H
#define PC_UNPACK_H

#include "helper/archive.h"
#include "names.h"
#include "tar.h"
#include "wire.h"

/* A directory that is completed last: its times are set, or the archive did not name it. */
struct pc_noted
{
  i64 seconds;
  u32 nanoseconds;
  u16 size; /* of the path with its NUL, which follows; rounded up to 8 */
  u16 kind;
};

enum pc_noted_kind
{
  PC_NOTED_NAMED,
  PC_NOTED_IMPLIED,
  PC_NOTED_OPAQUE,
  PC_NOTED_WHITEOUT,
};

struct pc_unpack
{
  int top;
  u64 flags;
  u64 max_bytes;
  u64 max_entries;
  u32 first_id;
  struct pc_unpack_report report;
  /* The directory of the last entry, kept open because archives group entries by directory. */
  int parent;
  int parent_shares; /* set-group-ID directory */
  usize parent_size;
  char parent_path[PC_TAR_NAME_MOST]; /* free of links */
  usize asked_size;
  char asked[PC_TAR_NAME_MOST]; /* the same path as written in the archive */
  char path[PC_TAR_NAME_MOST];
  u32 root_seen;
  u8 *notes;
  usize notes_size;
  usize notes_room;
  /* The layers below, the uppermost first, if they are known before the first entry: then paths follow their
     links. */
  struct pc_fds lowers;
};

/* The mode of a directory until an entry names it. */
#define PC_IMPLIED_MODE 01001u
#define PC_OPAQUE "user.overlay.opaque"

struct pc_stat
{
  u32 mode;
  u32 uid;
  u32 gid;
  u32 is_whiteout;
  i64 seconds;
  u32 nanoseconds;
};

/* Copy an entry's name, cut to the room in the report. */
void pc_report_name (struct pc_unpack_report *report, const char *name);
/* Record a problem in the report and return it negated. */
int pc_unpack_failed (struct pc_unpack *unpack, u32 problem, word error);
/* The same for a path that may be right once the lower layers are known. */
int pc_unpack_crosses (struct pc_unpack *unpack, u32 problem, word error);

/* Resolve the name to a path without links in unpack->path and open its directory; *last is the last part, "" for
   the root. */
int pc_tree_enter (struct pc_unpack *unpack, const char *name, const char **last);
/* Close the directory that is kept open, because its name may have changed. */
void pc_tree_forget (struct pc_unpack *unpack);
/* Open a directory beneath top as O_PATH, following links within it; an fd or a negative errno. */
int pc_tree_open (int top, const char *path);
/* The same without following links: -ELOOP when the path has one. */
int pc_tree_open_nofollow (int top, const char *path);
/* Make the directory at a path that no entry named, `name` in the open directory `above`. Where the lower layers are
   known and have a link there, copy the link instead. 0 or a negative errno. */
word pc_tree_imply (struct pc_unpack *unpack, int above, const char *path, const char *name);
/* Resolve the links of a path in place; it has room for PC_TAR_NAME_MOST bytes. Where the lower layers are known,
   make its directories too. 0 or a negative errno. */
int pc_tree_resolve (struct pc_unpack *unpack, char *path, usize *path_size);
/* Read the visible link of the lower layers at a path, whose last part is `name`: 1, 0 where there is a directory or
   nothing, -ENOTDIR for another kind of file, or another negative errno. */
int pc_lower_link (const struct pc_unpack *unpack, const char *path, const char *name, char target[PC_TAR_NAME_MOST],
                   struct pc_stat *found);
int pc_tree_stat (int dir, const char *name, struct pc_stat *out);
/* Remove the entry `name`, if there is one. */
int pc_tree_clear (int dir, const char *name);
/* Mark the directory that is open as the parent as opaque. */
int pc_tree_hide_all (struct pc_unpack *unpack);
/* Mark the directory `name` of dir, `path` in the layer, as opaque. */
int pc_tree_mark_opaque (struct pc_unpack *unpack, int dir, const char *name, const char *path);
int pc_tree_whiteout (struct pc_unpack *unpack, int dir, const char *name);
int pc_tree_note (struct pc_unpack *unpack, const char *path, i64 seconds, u32 nanoseconds, u32 kind);

int pc_unpack_entry (struct pc_unpack *unpack, struct pc_tar *tar, const struct pc_tar_entry *entry);
/* Complete implied directories from the lower layers, then set the times of all. */
int pc_unpack_finish (struct pc_unpack *unpack, const int *lowers, u32 count);
/* Map an id of the archive, or of a lower layer, to its id on disk. */
static inline u32
pc_unpack_id (const struct pc_unpack *unpack, u64 id)
{
  return (u32) id + (id <= 65535 ? unpack->first_id : 0);
}

#endif
