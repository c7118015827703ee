/* The unpacker keeps directories of the lower layers open until its process exits; close them between two runs. */
#include "layers.h"
#include "lowers.h"

void
finish_forget (void)
{
  for (u32 i = 0; pc_cursor.ready && i < COUNT (pc_cursor.walks); i++)
    pc_close_fd (&pc_cursor.walks[i].dir);
  memset (&pc_cursor, 0, sizeof pc_cursor);
  for (u32 i = 0; i < COUNT (pc_cursor.walks); i++)
    pc_cursor.walks[i].dir = -1;
}
