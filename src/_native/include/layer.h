/* Messages between a caller and an unpacker or packer of layers, and the reasons to refuse an archive. */
#ifndef PC_LAYER_H
#define PC_LAYER_H

#include "protocol.h"

/* Reasons to refuse, declared once; Python reads the texts through the extension. */
#define PC_UNPACK_PROBLEMS(X)                                                                            \
  X (NONE, "nothing")                                                                                    \
  X (REQUEST, "the request is malformed")                                                                \
  X (CONFINE, "the unpacker could not apply its own sandbox")                                            \
  X (MEMORY, "no memory")                                                                                \
  X (READ, "the stream could not be read")                                                               \
  X (TRUNCATED, "the archive is truncated inside an entry")                                              \
  X (CHECKSUM, "a header's checksum is wrong")                                                           \
  X (NUMBER, "a header has an invalid number")                                                           \
  X (EXTENDED, "an extended header is malformed")                                                        \
  X (EXTENDED_SIZE, "an extended header is larger than 1 MiB")                                           \
  X (SPARSE, "a sparse file's map is malformed or has more than 65536 regions")                          \
  X (TYPE, "an entry has an unsupported type")                                                           \
  X (NAME, "an entry's name points out of the tree, has more than 256 parts or more than 4095 bytes")    \
  X (LINK_NAME, "a link's target is empty, outside the tree or longer than 4095 bytes")                  \
  X (BYTES, "the archive holds more bytes than allowed")                                                 \
  X (ENTRIES, "the archive holds more entries than allowed")                                             \
  X (WHITEOUT, "a whiteout has an invalid name")                                                         \
  X (DEVICE, "device 0/0 is reserved for the whiteouts of overlayfs")                                    \
  X (TARGET, "a hard link's target is not in the same layer, or is a directory")                         \
  X (PARENT, "an entry is below a file that is not a directory")                                         \
  X (BELOW, "an entry, whose directory is not in the archive, is below a link or file of a lower layer") \
  X (CREATE, "cannot create")                                                                            \
  X (REPLACE, "cannot replace")                                                                          \
  X (WRITE, "cannot write")                                                                              \
  X (OWNER, "cannot change the owner")                                                                   \
  X (MODE, "cannot set the mode")                                                                        \
  X (TIMES, "cannot set the times")                                                                      \
  X (ATTRIBUTE, "cannot set an extended attribute")                                                      \
  X (LOWER, "a lower layer cannot be read")                                                              \
  X (TREE, "the tree cannot be read")                                                                    \
  X (OUTPUT, "the archive cannot be written")                                                            \
  X (DEPTH, "a path of the tree is longer than 4095 bytes")

enum pc_unpack_problem
{
#define PC_UNPACK_ENUM(name, text) PC_UNPACK_##name,
  PC_UNPACK_PROBLEMS (PC_UNPACK_ENUM)
#undef PC_UNPACK_ENUM
      PC_UNPACK_PROBLEM_COUNT
};

#define PC_UNPACK_OWNERS 1u            /* files get the owners that the archive names */
#define PC_UNPACK_DEVICES 2u           /* device nodes are made, else left out */
#define PC_UNPACK_LANDLOCK 4u          /* this kernel has Landlock: it must hold */
#define PC_UNPACK_READABLE 8u          /* add read permission for the owner to every mode */
#define PC_UNPACK_INTO_TREE 16u        /* add to an existing tree that is no layer: whiteout names have no meaning */
#define PC_UNPACK_NO_SPECIAL_FILES 32u /* no FIFOs, no set-id bits, no attributes but user.* */
#define PC_UNPACK_NO_SET_ID 128u       /* files get no set-id bits and no capabilities */
#define PC_UNPACK_THROUGH 256u /* PC_REQUEST_FINISH precedes the stream: paths follow links of the lower layers */
#define PC_UNPACK_MERGE 64u    /* apply to the layer in the directory: whiteouts remove its entries */
#define PC_UNPACK_OPEN_DIRECTORIES 512u /* add all permissions for the owner to the modes of directories */

/* PC_REQUEST_UNPACK turns a launcher into an unpacker.  fds: the layer's directory, the stream of its archive,
   and for a running container a pidfd of a process whose user namespace is joined first.  Answered by one report
   at the end of the stream.  A PC_REQUEST_FINISH with the lower layers, the uppermost first, is answered by a
   second report. */
struct pc_unpack_request
{
  struct pc_request request;
  u64 max_bytes;
  u64 max_entries;
  u32 flags;
  u32 first_id; /* id on disk of the archive's id 0; 65536 ids follow each other */
  /* The user of the joined namespace that writes; root with its capabilities if all are 0. */
  u32 uid;
  u32 gid;
  u32 group_count;
  u32 pad;
  u32 groups[64];
};

#define PC_PACK_WHITEOUTS 1u /* write overlayfs's marks as those of layers, else leave them out */
#define PC_PACK_CLAMP 2u     /* no time is later than `clamp` */
#define PC_PACK_LANDLOCK 4u
#define PC_PACK_ONE_MOUNT 8u   /* leave out mounts below the tree, but not their mount points */
#define PC_PACK_HEADERS 16u    /* write files without content, of size 0 */
#define PC_PACK_CONTENT 32u    /* write no entry for the tree itself */
#define PC_PACK_OWNER 64u      /* everything belongs to `uid` and `gid` */
#define PC_PACK_NO_KERNEL 128u /* leave out mounts of kernel interfaces (/proc, /sys) below the tree */

/* PC_REQUEST_PACK turns a launcher into a packer.  fds: the tree's directory, the stream to write to, and a pidfd as
   above.  Paths to leave out follow, each with its NUL.  Answered by one report. */
struct pc_pack_request
{
  struct pc_request request;
  u64 first_id; /* id on disk of the archive's id 0; 65536 ids follow each other, others are kept */
  i64 clamp;    /* seconds */
  u32 flags;
  u32 uid;
  u32 gid;
  u32 pad;
};

#define PC_UNPACK_ROOT_OPAQUE 1u /* the whole layer is opaque */
#define PC_UNPACK_CROSSES 2u     /* refused, but PC_UNPACK_THROUGH may help */

struct pc_unpack_report
{
  u32 problem;
  i32 error; /* errno, or 0 */
  u32 flags;
  u32 implied; /* directories that the archive left out and that have an entry below them */
  u64 entries;
  u64 bytes;   /* of file content */
  u64 skipped; /* device nodes and attributes that were left out */
  char name[256];
};

#endif
