/* Whether two trees are the same, as far as an archive can say. */
#define _GNU_SOURCE
#include "layers.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define DIRECTORY_NOFOLLOW (0200000 | 0400000)
#define NOFOLLOW_NONBLOCK (0400000 | 04000)
#define AT_SYMLINK_NOFOLLOW_ 0x100
#define ROOM 65536

int openat (int dir, const char *path, int flags, ...);

static void
compare_times (const struct stat *a, const struct stat *b)
{
  if (a->st_mtim.tv_sec >= CLAMP)
    REQUIRE (b->st_mtim.tv_sec == CLAMP && b->st_mtim.tv_nsec == 0);
  else
    REQUIRE (a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec);
}

/* ACLs are of the host whose ids they name, and are left out. */
static int
is_packed (const char *name)
{
  return strncmp (name, "system.", 7) != 0;
}

static void
compare_attributes (int a, int b)
{
  static char names[ROOM], value_a[ROOM], value_b[ROOM];
  ssize_t size = flistxattr (a, names, sizeof names);
  u32 counts[2] = { 0, 0 };
  for (ssize_t at = 0; at < size; at += (ssize_t) strlen (names + at) + 1)
    {
      if (!is_packed (names + at))
        continue;
      ssize_t got = fgetxattr (a, names + at, value_a, sizeof value_a);
      REQUIRE (got >= 0 && got == fgetxattr (b, names + at, value_b, sizeof value_b));
      REQUIRE (memcmp (value_a, value_b, (size_t) got) == 0);
      counts[0]++;
    }
  size = flistxattr (b, names, sizeof names);
  for (ssize_t at = 0; at < size; at += (ssize_t) strlen (names + at) + 1)
    counts[1] += (u32) is_packed (names + at);
  REQUIRE (counts[0] == counts[1]);
}

static void
compare_content (int a, int b)
{
  static u8 data_a[ROOM], data_b[ROOM];
  ssize_t got;
  do
    {
      got = read (a, data_a, sizeof data_a);
      REQUIRE (got >= 0 && got == read (b, data_b, sizeof data_b));
      REQUIRE (memcmp (data_a, data_b, (size_t) got) == 0);
    }
  while (got > 0);
}

static void
compare_opened (int a, int b, const char *name, int is_file)
{
  int flags = is_file ? NOFOLLOW_NONBLOCK : DIRECTORY_NOFOLLOW;
  int inner_a = openat (a, name, flags);
  int inner_b = openat (b, name, flags);
  /* Owners may lock themselves out; the packer would have failed for one that is not root. */
  REQUIRE (inner_a >= 0 && inner_b >= 0);
  compare_attributes (inner_a, inner_b);
  if (is_file)
    compare_content (inner_a, inner_b);
  else
    compare_trees (inner_a, inner_b);
  close (inner_a);
  close (inner_b);
}

static void
compare_links (int a, int b, const char *name)
{
  char target_a[4096], target_b[4096];
  ssize_t size = readlinkat (a, name, target_a, sizeof target_a);
  REQUIRE (size > 0 && size == readlinkat (b, name, target_b, sizeof target_b));
  REQUIRE (memcmp (target_a, target_b, (size_t) size) == 0);
}

static void
compare_entries (int a, int b, const char *name)
{
  struct stat seen_a, seen_b;
  REQUIRE (fstatat (a, name, &seen_a, AT_SYMLINK_NOFOLLOW_) == 0);
  REQUIRE (fstatat (b, name, &seen_b, AT_SYMLINK_NOFOLLOW_) == 0);
  REQUIRE ((seen_a.st_mode & S_IFMT) == (seen_b.st_mode & S_IFMT) && seen_a.st_rdev == seen_b.st_rdev);
  if (S_ISCHR (seen_a.st_mode) && seen_a.st_rdev == 0)
    return; /* a whiteout says nothing but its name */
  REQUIRE (seen_a.st_mode == seen_b.st_mode);
  REQUIRE (seen_a.st_uid == seen_b.st_uid && seen_a.st_gid == seen_b.st_gid);
  compare_times (&seen_a, &seen_b);
  if (S_ISREG (seen_a.st_mode))
    REQUIRE (seen_a.st_size == seen_b.st_size && seen_a.st_nlink == seen_b.st_nlink);
  if (S_ISLNK (seen_a.st_mode))
    compare_links (a, b, name);
  else if (S_ISREG (seen_a.st_mode) || S_ISDIR (seen_a.st_mode))
    compare_opened (a, b, name, S_ISREG (seen_a.st_mode));
}

static u32
count_entries (int dir)
{
  int fd = openat (dir, ".", DIRECTORY_NOFOLLOW);
  DIR *listing = fdopendir (fd);
  u32 count = 0;
  REQUIRE (listing != NULL);
  while (readdir (listing) != NULL)
    count++;
  closedir (listing);
  return count;
}

void
compare_trees (int a, int b)
{
  struct dirent *entry;
  int fd = openat (a, ".", DIRECTORY_NOFOLLOW);
  DIR *listing = fdopendir (fd);
  REQUIRE (listing != NULL);
  while ((entry = readdir (listing)) != NULL)
    if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0)
      compare_entries (a, b, entry->d_name);
  closedir (listing);
  REQUIRE (count_entries (a) == count_entries (b));
}
