/* Buffered reading of a tar stream. */
#include "stream.h"
#include "wire.h"

#include <linux/errno.h>

int
pc_tar_fill (struct pc_tar *tar, usize wanted)
{
  if (tar->start == tar->end)
    tar->start = tar->end = 0;
  if (tar->start + wanted > PC_TAR_BUFFER)
    {
      memcpy (tar->buffer, tar->buffer + tar->start, tar->end - tar->start);
      tar->end -= tar->start;
      tar->start = 0;
    }
  while (tar->end - tar->start < wanted)
    {
      word got = sys_read (tar->fd, tar->buffer + tar->end, PC_TAR_BUFFER - tar->end);
      if (got == -EINTR)
        continue;
      if (got < 0)
        {
          tar->error = (i32) -got;
          return -PC_UNPACK_READ;
        }
      if (got == 0)
        return tar->end == tar->start ? 0 : -PC_UNPACK_TRUNCATED;
      tar->end += (usize) got;
    }
  return 1;
}

word
pc_tar_data (struct pc_tar *tar, u64 most, const u8 **data)
{
  if (tar->left < most)
    most = tar->left;
  if (most == 0)
    return 0;
  if (tar->start == tar->end)
    {
      int got = pc_tar_fill (tar, 1);
      if (got <= 0)
        return got < 0 ? got : -PC_UNPACK_TRUNCATED;
    }
  usize there = tar->end - tar->start;
  if (there > most)
    there = (usize) most;
  *data = tar->buffer + tar->start;
  tar->start += there;
  tar->left -= there;
  tar->skip -= there;
  return (word) there;
}

int
pc_tar_skip (struct pc_tar *tar)
{
  while (tar->skip > 0)
    {
      if (tar->start == tar->end)
        {
          int got = pc_tar_fill (tar, 1);
          if (got <= 0)
            return got < 0 ? got : -PC_UNPACK_TRUNCATED;
        }
      usize there = tar->end - tar->start;
      if (there > tar->skip)
        there = (usize) tar->skip;
      tar->start += there;
      tar->skip -= there;
    }
  tar->left = 0;
  return 1;
}

int
pc_tar_drain (struct pc_tar *tar)
{
  for (;;)
    {
      tar->start = tar->end = 0;
      int got = pc_tar_fill (tar, 1);
      if (got <= 0)
        return got;
    }
}

int
pc_tar_take (struct pc_tar *tar, u8 *out, usize size)
{
  while (size > 0)
    {
      const u8 *data;
      word got = pc_tar_data (tar, size, &data);
      if (got <= 0)
        return got < 0 ? (int) got : -PC_UNPACK_TRUNCATED;
      memcpy (out, data, (usize) got);
      out += got;
      size -= (usize) got;
    }
  return 1;
}

void
pc_tar_begin (struct pc_tar *tar, u64 size)
{
  tar->left = size;
  tar->skip = (size + PC_TAR_BLOCK - 1) / PC_TAR_BLOCK * PC_TAR_BLOCK;
}
