/* Extraction of one archive entry; a file in its place is removed first. */
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

static int
failed (struct pc_unpack *unpack, u32 problem, word error)
{
  return pc_unpack_failed (unpack, problem, error);
}

static int
set_attributes (struct pc_unpack *unpack, const struct pc_tar *tar, int fd, const char *name)
{
  int no_special_files = (unpack->flags & PC_UNPACK_NO_SPECIAL_FILES) != 0;
  int no_set_id = (unpack->flags & PC_UNPACK_NO_SET_ID) != 0;
  usize at = 0;
  const char *key;
  const u8 *value;
  usize size;
  int entered = 0;

  while (pc_tar_attribute (tar, &at, &key, &value, &size))
    {
      word error = -EOPNOTSUPP;
      /* The kernel accepts an empty capability attribute from any user and grants nothing for it. */
      int is_empty = size == 0 && pc_streq (key, "security.capability");
      int is_left_out = (no_set_id && pc_streq (key, "security.capability"))
                        || (no_special_files && !pc_starts_with (key, "user."));
      if (pc_attribute_is_content (key) && !is_empty && !is_left_out)
        {
          if (fd < 0 && !entered && (error = sys_fchdir (unpack->parent)) < 0)
            return failed (unpack, PC_UNPACK_ATTRIBUTE, error);
          entered = 1;
          error
              = fd >= 0 ? sys_fsetxattr (fd, key, value, size, 0) : raw5 (__NR_lsetxattr, name, key, value, size, 0);
        }
      /* The file system or kind of file has no such attribute, or this user may not set it.  EINVAL: the value
         has ids that the user namespace does not map. */
      if (error == -EOPNOTSUPP || error == -EPERM || (error == -EINVAL && !pc_starts_with (key, "user.")))
        unpack->report.skipped++;
      else if (error < 0)
        return failed (unpack, PC_UNPACK_ATTRIBUTE, error);
    }
  return 0;
}

static word
give (struct pc_unpack *unpack, int fd, const char *name, const struct pc_tar_entry *entry)
{
  int flags = fd >= 0 ? AT_EMPTY_PATH_ : AT_SYMLINK_NOFOLLOW_;
  int dir = fd >= 0 ? fd : unpack->parent;
  const char *path = fd >= 0 ? "" : name;
  if (!(unpack->flags & PC_UNPACK_OWNERS))
    return 0;
  if (entry->uid == 0 && entry->gid == 0 && !unpack->parent_shares && unpack->first_id == 0)
    return 0;
  word error = sys_fchownat (dir, path, pc_unpack_id (unpack, entry->uid), pc_unpack_id (unpack, entry->gid), flags);
  if (error != -EINVAL)
    return error;
  /* An id outside the user namespace becomes the overflow id. */
  u32 uid = entry->uid > 65535 ? 65534 : (u32) entry->uid;
  u32 gid = entry->gid > 65535 ? 65534 : (u32) entry->gid;
  error = sys_fchownat (dir, path, uid, gid, flags);
  if (error != -EINVAL)
    return error;
  unpack->report.skipped++; /* a map without the overflow id */
  return 0;
}

/* Set owner, attributes, mode and times in this order: chown clears set-id bits and capabilities. */
static int
set_metadata (struct pc_unpack *unpack, const struct pc_tar *tar, const struct pc_tar_entry *entry, int fd,
              const char *name, int set_mode)
{
  i64 times[4] = { entry->seconds, entry->nanoseconds, entry->seconds, entry->nanoseconds };
  word error = give (unpack, fd, name, entry);
  if (error < 0)
    return failed (unpack, PC_UNPACK_OWNER, error);
  if (tar->extended_size > 0)
    {
      int done = set_attributes (unpack, tar, fd, name);
      if (done < 0)
        return done;
    }
  if (set_mode)
    {
      error = fd >= 0 ? sys_fchmod (fd, entry->mode) : sys_fchmodat (unpack->parent, name, entry->mode);
      if (error < 0)
        return failed (unpack, PC_UNPACK_MODE, error);
    }
  error = fd >= 0 ? sys_utimensat (fd, NULL, times, 0)
                  : sys_utimensat (unpack->parent, name, times, AT_SYMLINK_NOFOLLOW_);
  return error < 0 ? failed (unpack, PC_UNPACK_TIMES, error) : 0;
}

static int
write_all (struct pc_unpack *unpack, int fd, const u8 *data, usize size)
{
  while (size > 0)
    {
      word done = sys_write (fd, data, size);
      if (done == -EINTR)
        continue;
      if (done <= 0)
        return failed (unpack, PC_UNPACK_WRITE, done);
      data += done;
      size -= (usize) done;
    }
  return 0;
}

static int
copy_data (struct pc_unpack *unpack, struct pc_tar *tar, int fd, u64 size)
{
  while (size > 0)
    {
      const u8 *data;
      word got = pc_tar_data (tar, size, &data);
      if (got <= 0)
        return failed (unpack, got < 0 ? (u32) -got : PC_UNPACK_TRUNCATED, -tar->error);
      int done = write_all (unpack, fd, data, (usize) got);
      if (done < 0)
        return done;
      size -= (u64) got;
    }
  return 0;
}

static int
fill_file (struct pc_unpack *unpack, struct pc_tar *tar, const struct pc_tar_entry *entry, int fd)
{
  if (!entry->sparse)
    return copy_data (unpack, tar, fd, entry->stored);
  for (u32 i = 0; i < entry->region_count; i++)
    {
      word error = sys_lseek (fd, (word) entry->regions[i].offset, 0);
      if (error < 0)
        return failed (unpack, PC_UNPACK_WRITE, error);
      int done = copy_data (unpack, tar, fd, entry->regions[i].size);
      if (done < 0)
        return done;
    }
  word error = sys_ftruncate (fd, entry->size);
  return error < 0 ? failed (unpack, PC_UNPACK_WRITE, error) : 0;
}

static int
make_file (struct pc_unpack *unpack, struct pc_tar *tar, const struct pc_tar_entry *entry, const char *name)
{
  int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  u32 special = entry->mode & 07000;
  cleanup_fd int fd = (int) sys_openat (unpack->parent, name, flags, entry->mode & 0777);

  if (fd == -EEXIST)
    {
      word error = pc_tree_clear (unpack->parent, name);
      if (error < 0)
        return failed (unpack, PC_UNPACK_REPLACE, error);
      fd = (int) sys_openat (unpack->parent, name, flags, entry->mode & 0777);
    }
  if (fd < 0)
    return failed (unpack, PC_UNPACK_CREATE, fd);
  int done = fill_file (unpack, tar, entry, fd);
  return done < 0 ? done : set_metadata (unpack, tar, entry, fd, name, special != 0);
}

/* Remove the attributes that an earlier entry of the same name set. */
static word
forget_attributes (int parent, const char *name)
{
  static char names[65536];
  cleanup_fd int fd = (int) sys_openat (parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  word size = fd < 0 ? fd : sys_flistxattr (fd, names, sizeof names);

  for (word at = 0; at < size; at += (word) pc_strlen (names + at) + 1)
    if (pc_attribute_is_content (names + at))
      {
        word error = raw2 (__NR_fremovexattr, fd, names + at);
        if (error < 0)
          return error;
      }
  return size < 0 && size != -EOPNOTSUPP ? size : 0;
}

static int
make_directory (struct pc_unpack *unpack, const struct pc_tar *tar, const struct pc_tar_entry *entry,
                const char *name)
{
  int hides = 0;
  struct pc_stat found = { 0 };
  word error = sys_mkdirat (unpack->parent, name, 0700);

  if (error == -EEXIST && pc_tree_stat (unpack->parent, name, &found) == 0 && (found.mode & S_IFMT) != S_IFDIR)
    {
      error = pc_tree_clear (unpack->parent, name);
      if (error < 0)
        return failed (unpack, PC_UNPACK_REPLACE, error);
      /* The removed file or whiteout hid the lower layers already. */
      hides = 1;
      error = sys_mkdirat (unpack->parent, name, 0700);
    }
  if (error < 0 && error != -EEXIST)
    return failed (unpack, PC_UNPACK_CREATE, error);
  if (error == -EEXIST && (error = forget_attributes (unpack->parent, name)) < 0)
    return failed (unpack, PC_UNPACK_ATTRIBUTE, error);
  if (hides)
    {
      error = pc_tree_mark_opaque (unpack, unpack->parent, name, unpack->path);
      if (error < 0)
        return failed (unpack, PC_UNPACK_WHITEOUT, error);
    }
  /* In a running container's tree the guest may have replaced the name by a link. */
  cleanup_fd int fd = -1;
  if (unpack->flags & PC_UNPACK_INTO_TREE)
    {
      fd = (int) sys_openat (unpack->parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
      if (fd < 0)
        return failed (unpack, PC_UNPACK_CREATE, fd);
    }
  int done = set_metadata (unpack, tar, entry, fd, name, 1);
  if (done < 0)
    return done;
  error = pc_tree_note (unpack, unpack->path, entry->seconds, entry->nanoseconds, PC_NOTED_NAMED);
  return error < 0 ? failed (unpack, PC_UNPACK_MEMORY, error) : 0;
}

static int
set_root_metadata (struct pc_unpack *unpack, const struct pc_tar *tar, const struct pc_tar_entry *entry)
{
  if (entry->type != PC_TAR_DIRECTORY)
    return failed (unpack, PC_UNPACK_NAME, 0);
  unpack->root_seen = 1;
  int done = set_metadata (unpack, tar, entry, -1, ".", 1);
  pc_tree_forget (unpack); /* the directory may pass its group on from now on */
  if (done < 0)
    return done;
  word error = pc_tree_note (unpack, "", entry->seconds, entry->nanoseconds, PC_NOTED_NAMED);
  return error < 0 ? failed (unpack, PC_UNPACK_MEMORY, error) : 0;
}

static word
create_other (struct pc_unpack *unpack, const struct pc_tar_entry *entry, const char *name)
{
  u32 major = entry->major;
  u32 minor = entry->minor;
  u32 kind = entry->type == PC_TAR_FIFO ? S_IFIFO : entry->type == PC_TAR_CHARACTER ? S_IFCHR : S_IFBLK;

  if (entry->type == PC_TAR_SYMLINK)
    return sys_symlinkat (entry->link, unpack->parent, name);
  u32 device = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
  return sys_mknodat (unpack->parent, name, kind | (entry->mode & 0777), kind == S_IFIFO ? 0 : device);
}

static int
make_other (struct pc_unpack *unpack, const struct pc_tar *tar, const struct pc_tar_entry *entry, const char *name)
{
  word error = create_other (unpack, entry, name);
  if (error == -EEXIST)
    {
      error = pc_tree_clear (unpack->parent, name);
      if (error < 0)
        return failed (unpack, PC_UNPACK_REPLACE, error);
      error = create_other (unpack, entry, name);
    }
  if (error < 0)
    return failed (unpack, PC_UNPACK_CREATE, error);
  /* In a live tree the node is created with its final mode: chmod by name could follow a guest's link. */
  int set_mode = entry->type != PC_TAR_SYMLINK && !(unpack->flags & PC_UNPACK_INTO_TREE);
  return set_metadata (unpack, tar, entry, -1, name, set_mode);
}

/* Open a directory of this layer, through links of the lower layers once they are known. */
static int
open_through (struct pc_unpack *unpack, const char *path)
{
  static char real[PC_TAR_NAME_MOST];
  usize size = pc_strlen (path);
  int fd = pc_tree_open (unpack->top, size > 0 ? path : ".");

  if (fd >= 0 || unpack->lowers.count == 0)
    return fd;
  memcpy (real, path, size + 1);
  int error = pc_tree_resolve (unpack, real, &size);
  return error < 0 ? error : pc_tree_open (unpack->top, size > 0 ? real : ".");
}

/* Resolve a link target within the layer; its directory must exist, links stay inside. */
static int
open_target (struct pc_unpack *unpack, const char *link, const char **last)
{
  static char path[PC_TAR_NAME_MOST];
  usize n = 0;

  while (*link != '\0')
    {
      usize size = 0;
      while (link[size] != '\0' && link[size] != '/')
        size++;
      if (size == 2 && link[0] == '.' && link[1] == '.')
        return failed (unpack, PC_UNPACK_LINK_NAME, 0);
      if (size > 0 && !(size == 1 && link[0] == '.'))
        {
          if (n > 0)
            path[n++] = '/';
          memcpy (path + n, link, size);
          n += size;
        }
      link += size + (link[size] == '/');
    }
  path[n] = '\0';
  while (n > 0 && path[n - 1] != '/')
    n--;
  *last = path + n;
  if ((*last)[0] == '\0')
    return failed (unpack, PC_UNPACK_LINK_NAME, 0);
  if (n > 0)
    path[n - 1] = '\0';
  int fd = open_through (unpack, n > 0 ? path : "");
  return fd < 0 ? pc_unpack_crosses (unpack, PC_UNPACK_TARGET, fd) : fd;
}

static int
make_hard_link (struct pc_unpack *unpack, const struct pc_tar_entry *entry, const char *name)
{
  const char *last = "";
  struct pc_stat found = { 0 };
  cleanup_fd int dir = open_target (unpack, entry->link, &last);
  if (dir < 0)
    return dir;
  word error = pc_tree_stat (dir, last, &found);
  if (error == 0 && found.is_whiteout)
    error = -ENOENT;
  if (error < 0)
    return pc_unpack_crosses (unpack, PC_UNPACK_TARGET, error);
  if ((found.mode & S_IFMT) == S_IFDIR)
    return failed (unpack, PC_UNPACK_TARGET, -EISDIR);
  error = sys_linkat (dir, last, unpack->parent, name, 0);
  if (error == -EEXIST)
    {
      /* A link to itself would remove its own target. */
      struct statx from, to;
      if (sys_statx (dir, last, AT_SYMLINK_NOFOLLOW_, STATX_INO, &from) == 0
          && sys_statx (unpack->parent, name, AT_SYMLINK_NOFOLLOW_, STATX_INO, &to) == 0
          && from.stx_ino == to.stx_ino)
        return 0;
      error = pc_tree_clear (unpack->parent, name);
      if (error == 0)
        error = sys_linkat (dir, last, unpack->parent, name, 0);
    }
  return error < 0 ? failed (unpack, PC_UNPACK_CREATE, error) : 0;
}

/* Also when the path goes through a link. */
static int
is_root (const struct pc_unpack *unpack, int dir)
{
  struct statx top;
  struct statx here;
  return dir == unpack->top
         || (sys_statx (unpack->top, "", AT_EMPTY_PATH_, STATX_INO, &top) == 0
             && sys_statx (dir, "", AT_EMPTY_PATH_, STATX_INO, &here) == 0 && top.stx_ino == here.stx_ino);
}

/* ".wh.name" hides a name of the layers below, ".wh..wh..opq" all of them in its directory. */
static int
apply_marker (struct pc_unpack *unpack, const char *last)
{
  const char *name = last + 4;
  word error = 0;

  if (pc_streq (name, ".wh..opq"))
    {
      if (is_root (unpack, unpack->parent))
        unpack->report.flags |= PC_UNPACK_ROOT_OPAQUE;
      else
        error = pc_tree_hide_all (unpack);
    }
  else if (pc_starts_with (name, ".wh."))
    return 0; /* bookkeeping of aufs */
  else if (name[0] == '\0' || pc_streq (name, ".") || pc_streq (name, ".."))
    return failed (unpack, PC_UNPACK_WHITEOUT, 0);
  else
    error = pc_tree_whiteout (unpack, unpack->parent, name);
  return error < 0 ? failed (unpack, PC_UNPACK_WHITEOUT, error) : 0;
}

int
pc_unpack_entry (struct pc_unpack *unpack, struct pc_tar *tar, const struct pc_tar_entry *entry)
{
  const char *last = "";
  int error = pc_tree_enter (unpack, entry->name, &last);

  if (error < 0)
    return error;
  if (last[0] == '\0')
    return set_root_metadata (unpack, tar, entry);
  if (!(unpack->flags & PC_UNPACK_INTO_TREE) && pc_starts_with (last, ".wh."))
    return apply_marker (unpack, last);
  switch (entry->type)
    {
    case PC_TAR_FILE:
      return make_file (unpack, tar, entry, last);
    case PC_TAR_DIRECTORY:
      return make_directory (unpack, tar, entry, last);
    case PC_TAR_HARD:
      return make_hard_link (unpack, entry, last);
    case PC_TAR_SYMLINK:
      if (entry->link[0] == '\0')
        return failed (unpack, PC_UNPACK_LINK_NAME, 0);
      return make_other (unpack, tar, entry, last);
    case PC_TAR_CHARACTER:
      if (entry->major == 0 && entry->minor == 0)
        return failed (unpack, PC_UNPACK_DEVICE, 0);
      /* fall through */
    case PC_TAR_BLOCK_DEVICE:
      if (unpack->flags & PC_UNPACK_DEVICES)
        return make_other (unpack, tar, entry, last);
      unpack->report.skipped++;
      return 0;
    case PC_TAR_FIFO:
      if (unpack->flags & PC_UNPACK_NO_SPECIAL_FILES)
        {
          unpack->report.skipped++;
          return 0;
        }
      return make_other (unpack, tar, entry, last);
    default:
      return failed (unpack, PC_UNPACK_TYPE, 0);
    }
}
