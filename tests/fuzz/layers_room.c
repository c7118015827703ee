/* Directories: one to unpack into, layers below it, and what stands beside it and must never change. */
#define _GNU_SOURCE
#include "layers.h"

#include <dirent.h>
#include <ftw.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define O_RDONLY_DIRECTORY 0200000
#define O_PATH_DIRECTORY (010000000 | 0200000)
#define PATHS_MOST 64

int open (const char *path, int flags, ...);
int openat (int dir, const char *path, int flags, ...);
int pc_remove_tree (int dir, const char *name);

static char *paths[PATHS_MOST];
static u32 path_count;
static u64 fingerprint;

static u64
stamp (u64 hash, const char *path)
{
  struct stat seen;
  REQUIRE (lstat (path, &seen) == 0);
  u64 values[] = { seen.st_ino,
                   seen.st_mode,
                   seen.st_nlink,
                   seen.st_uid,
                   seen.st_gid,
                   (u64) seen.st_size,
                   (u64) seen.st_mtim.tv_sec,
                   (u64) seen.st_mtim.tv_nsec,
                   (u64) seen.st_ctim.tv_sec,
                   (u64) seen.st_ctim.tv_nsec };
  for (u32 i = 0; i < COUNT (values); i++)
    hash = (hash ^ values[i]) * 0x100000001b3ull;
  return hash;
}

static u64
stamp_all (void)
{
  u64 hash = 0xcbf29ce484222325ull;
  for (u32 i = 0; i < path_count; i++)
    hash = stamp (hash, paths[i]);
  return hash;
}

static int
remember (const char *path, const struct stat *seen, int kind, struct FTW *state)
{
  (void) seen, (void) kind, (void) state;
  if (strcmp (path, "./work") != 0)
    {
      REQUIRE (path_count < PATHS_MOST);
      paths[path_count++] = strdup (path);
    }
  return 0;
}

static void
directory (const char *path, mode_t mode)
{
  REQUIRE (mkdir (path, 0700) == 0 && chmod (path, mode) == 0);
}

static void
file (const char *path)
{
  FILE *out = fopen (path, "w");
  REQUIRE (out != NULL && fputs ("content", out) >= 0 && fclose (out) == 0);
}

/* Some file systems keep no attributes: then there are none. */
static void
attribute (const char *path, const char *name, const char *value)
{
  (void) setxattr (path, name, value, strlen (value), 0);
}

static void
make_lowers (void)
{
  directory ("upper", 0755);
  directory ("upper/etc", 0750);
  attribute ("upper/etc", "user.kept", "value");
  file ("upper/etc/file");
  directory ("upper/a", 0755);
  directory ("upper/a/b", 02775);
  REQUIRE (symlink ("etc", "upper/l") == 0);
  REQUIRE (symlink ("../../canary", "upper/away") == 0);
  REQUIRE (symlink ("/l/../../canary/inner", "upper/a/up") == 0);
  REQUIRE (symlink ("loop", "upper/loop") == 0);
  directory ("upper/opq", 0711);
  attribute ("upper/opq", "user.overlay.opaque", "y");
  REQUIRE (mknod ("upper/gone", S_IFCHR, 0) == 0);
  file ("upper/usr");
  directory ("lower", 0755);
  directory ("lower/etc", 0700);
  directory ("lower/etc/deep", 01777);
  directory ("lower/opq", 0755);
  directory ("lower/opq/hidden", 0755);
  directory ("lower/gone", 0755);
  directory ("lower/gone/inner", 0755);
  directory ("lower/l", 0755);
  directory ("lower/a", 0500);
  file ("lower/a/file");
}

void
room_make (struct room *room)
{
  const char *base = getenv ("PYC_FUZZ_ROOM");

  umask (0);
  if (base == NULL || chdir (base) != 0)
    {
      fprintf (stderr, "layers: PYC_FUZZ_ROOM names no directory\n");
      exit (2);
    }
  directory ("canary", 0755);
  directory ("canary/inner", 0755);
  file ("canary/file");
  file ("canary/inner/file");
  REQUIRE (symlink ("../work", "canary/link") == 0);
  make_lowers ();
  directory ("work", 0755);
  REQUIRE (nftw (".", remember, 8, FTW_PHYS) == 0);
  fingerprint = stamp_all ();
  room->work = open ("work", O_RDONLY_DIRECTORY);
  room->lowers[0] = open ("upper", O_PATH_DIRECTORY);
  room->lowers[1] = open ("lower", O_PATH_DIRECTORY);
  REQUIRE (room->work >= 0 && room->lowers[0] >= 0 && room->lowers[1] >= 0);
}

int
room_fresh (const struct room *room, const char *name)
{
  REQUIRE (mkdirat (room->work, name, 0755) == 0);
  int fd = openat (room->work, name, O_RDONLY_DIRECTORY);
  REQUIRE (fd >= 0);
  return fd;
}

void
room_check (const struct room *room, u32 directories)
{
  struct stat seen;
  (void) room;
  /* A link of the target's own working directory: it may have moved into the tree. */
  REQUIRE (fchdir (room->work) == 0 && chdir ("..") == 0);
  REQUIRE (stamp_all () == fingerprint);
  REQUIRE (fstat (room->work, &seen) == 0);
  REQUIRE (seen.st_nlink < 2 || seen.st_nlink == 2 + directories);
  DIR *listing = opendir ("work");
  REQUIRE (listing != NULL);
  u32 found = 0;
  while (readdir (listing) != NULL)
    found++;
  closedir (listing);
  REQUIRE (found == 2 + directories);
}
