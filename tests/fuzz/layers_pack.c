/* The packer, without process and confinement around it. */
#include "helper/archive/pack.c"

#include "layers.h"

int
pack_layer (int top, u32 flags, struct pc_unpack_report *result)
{
  static u8 *names, *links;

  if (names == NULL)
    {
      names = pc_reserve (PC_ARENA_MOST);
      links = pc_reserve (PC_ARENA_MOST);
      REQUIRE (names != NULL && links != NULL);
    }
  memset (&pack, 0, sizeof pack);
  pack.names.memory = names;
  pack.links.memory = links;
  pack.links.used = 8;
  pack.left_out = "";
  pack.flags = flags | PC_PACK_CLAMP;
  pack.clamp = CLAMP;
  pack.attribute_values = pc_reserve (PC_HEADER_ATTRIBUTES);
  pack.writer.fd = OUTPUT_FD;
  pack.writer.buffer = pc_reserve (PC_TAR_BUFFER);
  pack.writer.extended = pc_reserve (PC_TAR_EXTENDED_MOST);
  kernel_output_size = 0;
  int error = put_tree (top);
  *result = pack.report;
  REQUIRE ((error < 0) == (result->problem != 0));
  return error;
}
