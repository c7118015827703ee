/* Streaming reader of tar: ustar, PAX, GNU, and the four kinds of sparse file. */
#ifndef PC_TAR_H
#define PC_TAR_H

#include "layer.h"

#define PC_TAR_BLOCK 512u
#define PC_TAR_BUFFER (1u << 20)
#define PC_TAR_EXTENDED_MOST (1u << 20)
#define PC_TAR_NAME_MOST 4096u
#define PC_TAR_REGIONS_MOST 65536u

/* Entry types by their ustar letters; PC_TAR_FILE covers all types with data. */
enum pc_tar_type
{
  PC_TAR_FILE = '0',
  PC_TAR_HARD = '1',
  PC_TAR_SYMLINK = '2',
  PC_TAR_CHARACTER = '3',
  PC_TAR_BLOCK_DEVICE = '4',
  PC_TAR_DIRECTORY = '5',
  PC_TAR_FIFO = '6',
};

struct pc_tar_region
{
  u64 offset;
  u64 size;
};

struct pc_tar_entry
{
  char type;
  u32 mode;
  u64 uid;
  u64 gid;
  u64 stored; /* bytes in the archive */
  u64 size;   /* bytes of the file: more than stored for a sparse one */
  i64 seconds;
  u32 nanoseconds;
  u32 major;
  u32 minor;
  char *name;
  char *link;
  const struct pc_tar_region *regions;
  u32 region_count; /* 0 and stored == size: the data is the file */
  u32 sparse;
};

struct pc_tar
{
  int fd;
  i32 error; /* errno of a failed read */
  u32 ended;
  u8 *buffer;
  usize start;
  usize end;
  u64 skip; /* unread bytes of the last entry's data and padding */
  u64 left; /* unread bytes of the entry's data */
  u8 *extended;
  usize extended_size;
  struct pc_tar_region *regions;
  char name[PC_TAR_NAME_MOST + 8];
  char link[PC_TAR_NAME_MOST + 8];
  char long_name[PC_TAR_NAME_MOST + 8];
  char long_link[PC_TAR_NAME_MOST + 8];
};

/* memory: PC_TAR_MEMORY bytes, aligned to 16. */
#define PC_TAR_MEMORY \
  ((usize) PC_TAR_BUFFER + PC_TAR_EXTENDED_MOST + 8 + PC_TAR_REGIONS_MOST * sizeof (struct pc_tar_region))
void pc_tar_open (struct pc_tar *tar, int fd, void *memory);
/* Read the next entry: 1, 0 at the archive's end, or a negated pc_unpack_problem. */
int pc_tar_next (struct pc_tar *tar, struct pc_tar_entry *entry);
/* Read at most `most` bytes of the entry's data: their number, 0 at the end, or a negated problem. */
word pc_tar_data (struct pc_tar *tar, u64 most, const u8 **data);
/* Read the rest of the stream after the archive's end, so that its writer does not block. */
int pc_tar_drain (struct pc_tar *tar);
/* Return the next extended attribute of the last entry: 1 with name and value, 0 after the last. */
int pc_tar_attribute (const struct pc_tar *tar, usize *at, const char **name, const u8 **value, usize *size);

#endif
