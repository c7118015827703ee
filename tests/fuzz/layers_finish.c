/* The unpacker's end, which leaves its directories open for the process to end with. */
#include "helper/archive/finish.c"

#include "layers.h"

void
finish_forget (void)
{
  for (u32 i = 0; cursor.ready && i < COUNT (cursor.walks); i++)
    pc_close_fd (&cursor.walks[i].dir);
  memset (&cursor, 0, sizeof cursor);
  for (u32 i = 0; i < COUNT (cursor.walks); i++)
    cursor.walks[i].dir = -1;
}
