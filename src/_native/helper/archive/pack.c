/* Packer of a tree: sorted, without following links, safe against a guest that changes the tree meanwhile. */
#include "header.h"
#include "names.h"
#include "helper/sandbox.h"
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

#define ATTRIBUTES_MOST 128u
#define IDS 65536u
#define MOUNT_ID 0x1000u /* STATX_MNT_ID, of Linux 5.8 */
#define WHOLE (~(u64) 0) /* not sparse */
#define HOLES 4096u      /* bytes of holes from which a file is written as a sparse one */
#define HOLES_OF_LAYERS (1u << 20)

struct linked
{
  u64 inode;
  u32 major;
  u32 minor;
  u32 next; /* next in the bucket as an offset in the arena, 0 for none */
  u32 pad;
  char path[];
};

#define BUCKETS 16384u

struct pack
{
  struct pc_writer writer;
  struct pc_arena names;
  struct pc_arena links;
  u32 buckets[BUCKETS];
  u64 first_id;
  i64 clamp;
  u32 flags;
  struct pc_unpack_report report;
  char path[PC_TAR_NAME_MOST + 8];
  char link[PC_TAR_NAME_MOST + 8];
  char attribute_names[65536];
  u8 *attribute_values;
  struct pc_attribute attributes[ATTRIBUTES_MOST];
  u32 attribute_count;
  u64 mount;
  u32 uid;
  u32 gid;
  struct pc_map map;
  const char *left_out; /* NUL-terminated paths, an empty one at the end */
};

static struct pack pack;

static int
failed (u32 problem, word error)
{
  pack.report.problem = problem;
  pack.report.error = (i32) -error;
  pc_report_name (&pack.report, pack.path);
  return -1;
}

static int
output_failed (void)
{
  return failed (PC_UNPACK_OUTPUT, -pack.writer.error);
}

static u32
own_id (u32 id)
{
  return pack.first_id != 0 && id >= pack.first_id && id - pack.first_id < IDS ? id - (u32) pack.first_id : id;
}

/* Strip the root id from a capability attribute of a user namespace: archives are independent of it. */
static void
plain_capability (struct pc_attribute *attribute)
{
  if (attribute->size != 24 || attribute->value[3] != 3)
    return;
  ((u8 *) (usize) attribute->value)[3] = 2;
  attribute->size = 20;
}

static int
read_attribute (int fd, const char *key, usize *used)
{
  struct pc_attribute *out = &pack.attributes[pack.attribute_count];
  u8 *value = pack.attribute_values + *used;
  usize room = PC_HEADER_ATTRIBUTES - *used;
  word got = sys_fgetxattr (fd, key, value, room);

  /* EINVAL: an empty capability attribute, which any guest can set and no user can read. */
  if (got < 0)
    return got == -ENODATA || got == -EOPNOTSUPP || got == -EINVAL ? 0 : (int) got;
  *out = (struct pc_attribute) { key, value, (usize) got };
  if (pc_streq (key, "security.capability"))
    plain_capability (out);
  *used += ((usize) got + 7) / 8 * 8;
  /* Sort by name: file systems list attributes in any order. */
  for (u32 i = pack.attribute_count++; i > 0 && pc_compare_names (pack.attributes[i - 1].name, key) > 0; i--)
    {
      struct pc_attribute held = pack.attributes[i - 1];
      pack.attributes[i - 1] = pack.attributes[i];
      pack.attributes[i] = held;
    }
  return 0;
}

/* Only files and directories have attributes that are content. */
static int
read_attributes (int fd)
{
  usize used = 0;
  pack.attribute_count = 0;
  word size = fd < 0 ? 0 : sys_flistxattr (fd, pack.attribute_names, sizeof pack.attribute_names);
  if (size == -EOPNOTSUPP)
    return 0;
  if (size < 0)
    return failed (PC_UNPACK_TREE, size);
  for (word at = 0; at < size; at += (word) pc_strlen (pack.attribute_names + at) + 1)
    {
      const char *key = pack.attribute_names + at;
      /* The ids in an ACL are host ids. */
      if (!pc_attribute_is_content (key) || pc_starts_with (key, "system.")
          || pack.attribute_count == ATTRIBUTES_MOST)
        continue;
      int error = read_attribute (fd, key, &used);
      if (error < 0)
        return failed (PC_UNPACK_TREE, error);
    }
  return 0;
}

static int
put_entry_of (const struct statx *found, char type, u64 size, char *link, u64 stored)
{
  struct pc_tar_entry entry = {
    .type = type,
    .mode = found->stx_mode & 07777,
    .uid = pack.flags & PC_PACK_OWNER ? pack.uid : own_id (found->stx_uid),
    .gid = pack.flags & PC_PACK_OWNER ? pack.gid : own_id (found->stx_gid),
    .size = size,
    .stored = stored,
    .sparse = stored != WHOLE,
    .seconds = found->stx_mtime.tv_sec,
    .nanoseconds = found->stx_mtime.tv_nsec,
    .major = type == PC_TAR_CHARACTER || type == PC_TAR_BLOCK_DEVICE ? found->stx_rdev_major : 0,
    .minor = type == PC_TAR_CHARACTER || type == PC_TAR_BLOCK_DEVICE ? found->stx_rdev_minor : 0,
    .name = pack.path[0] == '\0' ? (char[]) { "./" } : pack.path,
    .link = link,
  };

  if ((pack.flags & PC_PACK_CLAMP) && entry.seconds >= pack.clamp)
    {
      entry.seconds = pack.clamp;
      entry.nanoseconds = 0;
    }
  pack.report.entries++;
  pack.report.bytes += size;
  if (pc_writer_entry (&pack.writer, &entry, pack.attributes, pack.attribute_count) < 0)
    return output_failed ();
  return 0;
}

static int
put_entry (const struct statx *found, char type, u64 size, char *link)
{
  return put_entry_of (found, type, size, link, WHOLE);
}

/* Write as many bytes as the header announced, even if the file changes meanwhile. */
static int
put_bytes (int fd, u64 size)
{
  static u8 data[1 << 16];
  u64 left = size;
  while (left > 0)
    {
      word got = sys_read (fd, data, left < sizeof data ? (usize) left : sizeof data);
      if (got == -EINTR)
        continue;
      if (got < 0)
        return failed (PC_UNPACK_TREE, got);
      if (got == 0)
        {
          memset (data, 0, sizeof data);
          got = left < sizeof data ? (word) left : (word) sizeof data;
        }
      if (pc_writer_put (&pack.writer, data, (usize) got) < 0)
        return output_failed ();
      left -= (u64) got;
    }
  return 0;
}

/* A file with holes: one of a terabyte may take no block of the disk. */
static int
put_sparse (int fd, const struct statx *found, u64 stored)
{
  u64 whole = pc_map_size (&pack.map) + stored;

  if (put_entry_of (found, PC_TAR_FILE, found->stx_size, NULL, whole) < 0)
    return -1;
  if (pc_map_write (&pack.writer, &pack.map) < 0)
    return output_failed ();
  for (u32 i = 0; i < pack.map.count; i++)
    {
      word error = sys_lseek (fd, pack.map.regions[i].offset, 0);
      if (error < 0)
        return failed (PC_UNPACK_TREE, error);
      if (put_bytes (fd, pack.map.regions[i].size) < 0)
        return -1;
    }
  return pc_writer_pad (&pack.writer, whole) < 0 ? output_failed () : 0;
}

static int
put_content (int fd, const struct statx *found)
{
  u64 size = pack.flags & PC_PACK_HEADERS ? 0 : found->stx_size;
  /* Layers are for every reader: those of small holes have none. */
  u64 least = pack.flags & PC_PACK_WHITEOUTS ? HOLES_OF_LAYERS : HOLES;

  if (found->stx_blocks * 512 + least <= size)
    {
      u64 stored = pc_map_find (&pack.map, fd, size);
      if (stored + least <= size)
        return put_sparse (fd, found, stored);
      word error = sys_lseek (fd, 0, 0);
      if (error < 0)
        return failed (PC_UNPACK_TREE, error);
    }
  if (put_entry (found, PC_TAR_FILE, size, NULL) < 0 || put_bytes (fd, size) < 0)
    return -1;
  return pc_writer_pad (&pack.writer, size) < 0 ? output_failed () : 0;
}

/* Return the name under which a file with several links was packed first; NULL if this is the first. */
static char *
known_link (const struct statx *found)
{
  u32 *bucket = &pack.buckets[found->stx_ino % BUCKETS];
  for (u32 at = *bucket; at != 0;)
    {
      struct linked *linked = (struct linked *) (void *) (pack.links.memory + at);
      if (linked->inode == found->stx_ino && linked->major == found->stx_dev_major
          && linked->minor == found->stx_dev_minor)
        return linked->path;
      at = linked->next;
    }
  usize size = pc_strlen (pack.path) + 1;
  struct linked *fresh = pc_take (&pack.links, sizeof *fresh + size);
  if (fresh == NULL)
    return NULL; /* packed as a separate file */
  fresh->inode = found->stx_ino;
  fresh->major = found->stx_dev_major;
  fresh->minor = found->stx_dev_minor;
  fresh->next = *bucket;
  memcpy (fresh->path, pack.path, size);
  *bucket = (u32) ((u8 *) fresh - pack.links.memory);
  return NULL;
}

static int
put_file (int dir, const char *name)
{
  struct statx found;
  cleanup_fd int fd = (int) sys_openat (dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);
  if (fd == -ENOENT || fd == -ELOOP)
    return 0; /* removed or replaced meanwhile */
  word error = fd < 0 ? fd : sys_statx (fd, "", AT_EMPTY_PATH_, STATX_BASIC_STATS, &found);
  if (error < 0)
    return failed (PC_UNPACK_TREE, error);
  if ((found.stx_mode & S_IFMT) != S_IFREG)
    return 0;
  if (found.stx_nlink > 1)
    {
      char *first = known_link (&found);
      if (first != NULL)
        {
          pack.attribute_count = 0;
          return put_entry (&found, PC_TAR_HARD, 0, first);
        }
    }
  return read_attributes (fd) < 0 ? -1 : put_content (fd, &found);
}

static int
put_symlink (int dir, const char *name, const struct statx *found)
{
  word size = sys_readlinkat (dir, name, pack.link, PC_TAR_NAME_MOST);
  if (size == -ENOENT || size == -EINVAL)
    return 0;
  if (size < 0)
    return failed (PC_UNPACK_TREE, size);
  pack.link[size] = '\0';
  pack.attribute_count = 0;
  return put_entry (found, PC_TAR_SYMLINK, 0, pack.link);
}

/* Write the whiteout ".wh.name". */
static int
put_whiteout (usize cut, const char *name)
{
  struct statx plain = { .stx_mode = S_IFREG | 0644 }; /* no time, for reproducibility */
  char kept[256];
  usize n = pc_strlen (name) + 1;

  if (!(pack.flags & PC_PACK_WHITEOUTS))
    return 0;
  memcpy (kept, name, n);
  if (cut + 4 + n > PC_TAR_NAME_MOST)
    return failed (PC_UNPACK_DEPTH, 0);
  memcpy (pack.path + cut, ".wh.", 4);
  memcpy (pack.path + cut + 4, kept, n);
  plain.stx_uid = plain.stx_gid = (u32) pack.first_id;
  pack.attribute_count = 0;
  return put_entry (&plain, PC_TAR_FILE, 0, NULL);
}

static int
is_left_out (void)
{
  for (const char *at = pack.left_out; at != NULL && *at != '\0'; at += pc_strlen (at) + 1)
    if (pc_streq (at, pack.path))
      return 1;
  return 0;
}

static int put_directory (int dir, const char *name, const struct statx *found, usize size);

/* Pack a directory that is a mount point. */
static int
put_place (const struct statx *found, usize size)
{
  pack.path[size] = '/';
  pack.path[size + 1] = '\0';
  return put_entry (found, PC_TAR_DIRECTORY, 0, NULL);
}

static int
put_any (int dir, const char *name, usize cut)
{
  struct statx found;
  word error = sys_statx (dir, name, AT_SYMLINK_NOFOLLOW_, STATX_BASIC_STATS | MOUNT_ID, &found);
  usize n = pc_strlen (name);

  if (error == -ENOENT)
    return 0;
  if (cut + n + 2 > PC_TAR_NAME_MOST)
    return failed (PC_UNPACK_DEPTH, 0);
  memcpy (pack.path + cut, name, n + 1);
  if (error < 0)
    return failed (PC_UNPACK_TREE, error);
  if (is_left_out ())
    return 0;
  /* A guest's file of this name would be a whiteout when the layer is unpacked. */
  if ((pack.flags & PC_PACK_WHITEOUTS) && pc_starts_with (name, ".wh."))
    {
      pack.report.skipped++;
      return 0;
    }
  pack.attribute_count = 0;
  if ((pack.flags & PC_PACK_ONE_MOUNT) && found.stx_mnt_id != pack.mount)
    return (found.stx_mode & S_IFMT) == S_IFDIR ? put_place (&found, cut + n) : 0;
  switch (found.stx_mode & S_IFMT)
    {
    case S_IFDIR:
      return put_directory (dir, name, &found, cut + n);
    case S_IFREG:
      return put_file (dir, name);
    case S_IFLNK:
      return put_symlink (dir, name, &found);
    case S_IFCHR:
      if (found.stx_rdev_major == 0 && found.stx_rdev_minor == 0)
        return put_whiteout (cut, name);
      return put_entry (&found, PC_TAR_CHARACTER, 0, NULL);
    case S_IFBLK:
      return put_entry (&found, PC_TAR_BLOCK_DEVICE, 0, NULL);
    case S_IFIFO:
      return put_entry (&found, PC_TAR_FIFO, 0, NULL);
    default:
      pack.report.skipped++; /* a socket is useless without its listener */
      return 0;
    }
}

static int
put_children (int fd, usize size)
{
  usize before = pack.names.used;
  usize count;
  char **names = pc_list_names (&pack.names, fd, &count);
  if (names == NULL)
    return failed (PC_UNPACK_MEMORY, 0);
  if (size > 0)
    pack.path[size++] = '/';
  for (usize i = 0; i < count; i++)
    if (put_any (fd, names[i], size) < 0)
      return -1;
  pack.names.used = before;
  return 0;
}

static int
put_opaque (int fd, usize size)
{
  char value;
  if (!(pack.flags & PC_PACK_WHITEOUTS) || sys_fgetxattr (fd, PC_OPAQUE, &value, 1) != 1 || value != 'y')
    return 0;
  if (size + 16 > PC_TAR_NAME_MOST)
    return failed (PC_UNPACK_DEPTH, 0);
  pack.path[size] = '/';
  int done = put_whiteout (size + 1, ".wh..opq");
  pack.path[size] = '\0';
  return done;
}

/* Pack a directory and its content; its path ends at `size`. */
static int
put_directory (int dir, const char *name, const struct statx *found, usize size)
{
  struct statx here = *found;
  cleanup_fd int fd = (int) sys_openat (dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP)
    return 0;
  word error = fd < 0 ? fd : sys_statx (fd, "", AT_EMPTY_PATH_, STATX_BASIC_STATS, &here);
  if (error < 0)
    return failed (PC_UNPACK_TREE, error);
  if ((pack.flags & PC_PACK_NO_KERNEL) && found->stx_mnt_id != pack.mount && pc_is_of_kernel (fd))
    return put_place (found, size);
  if (size == 0 && (pack.flags & PC_PACK_CONTENT))
    return put_children (fd, size);
  if (read_attributes (fd) < 0)
    return -1;
  if (size > 0)
    {
      pack.path[size] = '/';
      pack.path[size + 1] = '\0';
    }
  if (put_entry (&here, PC_TAR_DIRECTORY, 0, NULL) < 0)
    return -1;
  pack.path[size] = '\0';
  if (size > 0 && put_opaque (fd, size) < 0)
    return -1;
  return put_children (fd, size);
}

static int
put_tree (int top)
{
  static const u8 end[2 * PC_TAR_BLOCK];
  struct statx found;
  word error = sys_statx (top, "", AT_EMPTY_PATH_, STATX_BASIC_STATS | MOUNT_ID, &found);

  if (error < 0)
    return failed (PC_UNPACK_TREE, error);
  pack.mount = found.stx_mnt_id;
  if (put_directory (top, ".", &found, 0) < 0)
    return -1;
  if (pc_writer_put (&pack.writer, end, sizeof end) < 0 || pc_writer_flush (&pack.writer) < 0)
    return output_failed ();
  return 0;
}

_Noreturn void
pc_pack (int socket, const struct pc_pack_request *request, int top, int stream)
{
  pack.first_id = request->first_id;
  pack.clamp = request->clamp;
  pack.flags = request->flags;
  pack.uid = request->uid;
  pack.gid = request->gid;
  pack.left_out = (const char *) (request + 1);
  word error = pc_confine_to (top, socket, stream, 0, (pack.flags & PC_PACK_LANDLOCK) != 0);
  if (error < 0)
    (void) failed (PC_UNPACK_CONFINE, error);
  pack.names.memory = error < 0 ? NULL : pc_reserve (PC_ARENA_MOST);
  pack.links.memory = error < 0 ? NULL : pc_reserve (PC_ARENA_MOST);
  pack.links.used = 8; /* 0 is no offset */
  pack.attribute_values = error < 0 ? NULL : pc_reserve (PC_HEADER_ATTRIBUTES);
  pack.writer.fd = stream;
  pack.writer.buffer = error < 0 ? NULL : pc_reserve (PC_TAR_BUFFER);
  pack.writer.extended = error < 0 ? NULL : pc_reserve (PC_TAR_EXTENDED_MOST);
  if (error == 0
      && (pack.names.memory == NULL || pack.links.memory == NULL || pack.attribute_values == NULL
          || pack.writer.buffer == NULL || pack.writer.extended == NULL))
    (void) failed (PC_UNPACK_MEMORY, 0);
  if (pack.report.problem == 0)
    (void) put_tree (top);
  sys_close (stream);
  sys_exit (pc_send (socket, &pack.report, sizeof pack.report, NULL, 0, 0) < 0);
}
