/* What the files of the unpacker share. */
#ifndef PC_UNPACK_H
#define PC_UNPACK_H

#include "tar.h"
#include "wire.h"

/* Directories whose times are set last, and those that the archive left out. */
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
  /* The directory that the last entry went to: archives keep theirs together. */
  int parent;
  int parent_shares; /* it hands its group on */
  usize parent_size;
  char parent_path[PC_TAR_NAME_MOST]; /* no link lies on it */
  usize asked_size;
  char asked[PC_TAR_NAME_MOST]; /* the same as the archive has it */
  char path[PC_TAR_NAME_MOST];
  u32 root_seen;
  u8 *notes;
  usize notes_size;
  usize notes_room;
};

/* The mode of a directory that no entry has named yet. */
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

/* Remember what went wrong: returns the negated problem. */
int pc_unpack_failed (struct pc_unpack *unpack, u32 problem, word error);

/* Make the name a path without links, in unpack->path, and open the directory that it goes to; *last is its last
   part, "" for the root itself. */
int pc_tree_enter (struct pc_unpack *unpack, const char *name, const char **last);
/* Forget the directory kept open: it may not be where its name leads any more. */
void pc_tree_forget (struct pc_unpack *unpack);
/* An O_PATH fd of a directory below top, links followed inside of it; or a negative errno. */
int pc_tree_open (int top, const char *path);
/* The same where no link lies on the path: -ELOOP where one does. */
int pc_tree_open_plain (int top, const char *path);
/* Replace what links stand for: path has room for PC_TAR_NAME_MOST bytes.  0 or a negative errno. */
int pc_tree_resolve (int top, char *path, usize *path_size);
int pc_tree_stat (int dir, const char *name, struct pc_stat *out);
/* Make way for something new at name. */
int pc_tree_clear (int dir, const char *name);
/* Nothing of the lower layers shows in the directory `name` of dir, which is `path` of the layer. */
/* The directory that is open as the parent hides everything of the layers below. */
int pc_tree_hide_all (struct pc_unpack *unpack);
int pc_tree_mark_opaque (struct pc_unpack *unpack, int dir, const char *name, const char *path);
int pc_tree_whiteout (struct pc_unpack *unpack, int dir, const char *name);
int pc_tree_note (struct pc_unpack *unpack, const char *path, i64 seconds, u32 nanoseconds, u32 kind);

int pc_starts_with (const char *text, const char *prefix);
/* user.* and a file's own ACL are content (a default ACL would change the entries that come after it), capabilities are part of a program; the rest is a host's own, and what
   overlayfs reads would change what a container sees. */
int pc_attribute_is_content (const char *name);
int pc_unpack_entry (struct pc_unpack *unpack, struct pc_tar *tar, const struct pc_tar_entry *entry);
/* Directories left out take after those of the lower layers; then the times of all. */
int pc_unpack_finish (struct pc_unpack *unpack, const int *lowers, u32 count);
/* Keep nothing but these fds and the rights that the work takes; top becomes the root. */
word pc_confine_to (int top, int socket, int stream, int writes, int landlock);

_Noreturn void pc_pack (int socket, const struct pc_pack_request *request, int top, int stream);
_Noreturn void pc_unpack (int socket, const struct pc_unpack_request *request, int top, int stream);

/* An id of the archive, or of a layer below, as it is on the disk. */
static inline u32
pc_unpack_id (const struct pc_unpack *unpack, u64 id)
{
  return (u32) id + (id <= 65535 ? unpack->first_id : 0);
}

#endif
