/* Unpacker and packer as they are, without processes and confinement around them. */
#include "helper/archive/unpack.c"

#include "layers.h"
#include "helper/sandbox.h"

/* Common start of both programs. */
word
pc_confine_to (int top, int socket, int stream_fd, int writes, int landlock)
{
  (void) top, (void) socket, (void) stream_fd, (void) writes, (void) landlock;
  abort ();
}

word
pc_act_as (u32 uid, u32 gid, u32 count, const u32 *groups)
{
  (void) uid, (void) gid, (void) count, (void) groups;
  abort ();
}

/* The files here are those of one directory. */
int
pc_is_of_kernel (int fd)
{
  (void) fd;
  return 0;
}

int
write_layer (int top, const int *lowers, u32 lower_count, u32 flags, struct pc_unpack_report *result)
{
  memset (&unpack, 0, sizeof unpack);
  unpack.parent = -1;
  unpack.top = top;
  unpack.flags = flags;
  unpack.max_bytes = MAX_BYTES;
  unpack.max_entries = MAX_ENTRIES;
  for (u32 i = 0; (flags & PC_UNPACK_THROUGH) && i < lower_count; i++)
    unpack.lowers.fd[unpack.lowers.count++] = lowers[i];
  finish_forget ();
  int error = unpack_stream (STREAM_FD);
  if (error == 0)
    error = pc_unpack_finish (&unpack, lowers, lower_count);
  pc_tree_forget (&unpack);
  finish_forget ();
  *result = unpack.report;
  REQUIRE (result->entries <= MAX_ENTRIES + 1);
  REQUIRE (error != 0 || result->entries + result->implied <= MAX_ENTRIES);
  REQUIRE (error == 0 || (int) result->problem == -error);
  REQUIRE (error != 0 || (result->entries <= MAX_ENTRIES && result->bytes <= MAX_BYTES));
  return error;
}
