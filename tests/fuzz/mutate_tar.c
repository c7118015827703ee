/* Mutations that know what an archive looks like: members are changed, made, moved, and their sums mended. */
#include "mutate.h"
#include "members.h"

#include <stdio.h>
#include <string.h>

#define MEMBERS_MOST 256

static struct archive archive;
static const uint8_t *donor;
static size_t donor_size;
static size_t begins[MEMBERS_MOST + 1];
static size_t member_count;

/* Where members begin, as far as sizes lead; one more for the end. */
static void
find_members (void)
{
  size_t at = 0;
  member_count = 0;
  while (at + BLOCK <= archive.size && member_count < MEMBERS_MOST)
    {
      size_t next = at + BLOCK + (member_size (archive.data + at) + BLOCK - 1) / BLOCK * BLOCK;
      begins[member_count++] = at;
      if (next > archive.size)
        break;
      at = next;
    }
  begins[member_count] = archive.size;
}

static uint8_t *
any_header (void)
{
  return member_count == 0 ? NULL : archive.data + begins[mutate_below (member_count)];
}

static void
change_field (void)
{
  uint8_t *header = any_header ();
  if (header != NULL)
    header_change (header);
}

static void
change_bytes (void)
{
  for (size_t n = mutate_below (8) + 1; n > 0 && archive.size > 0; n--)
    archive.data[mutate_below (archive.size)] = (uint8_t) mutate_any ();
}

/* In the data, where maps and records stand as text. */
static void
change_digit (void)
{
  for (size_t tries = 0; tries < 64 && archive.size > 0; tries++)
    {
      uint8_t *byte = &archive.data[mutate_below (archive.size)];
      if (*byte < '0' || *byte > '9')
        continue;
      *byte = (uint8_t) "0123456789=,\n -"[mutate_below (mutate_below (2) == 0 ? 10 : 15)];
      return;
    }
}

static void
remove_member (void)
{
  if (member_count == 0)
    return;
  size_t which = mutate_below (member_count);
  size_t from = begins[which + 1];
  memmove (archive.data + begins[which], archive.data + from, archive.size - from);
  archive.size -= from - begins[which];
}

static void
open_gap (size_t at, size_t size)
{
  memmove (archive.data + at + size, archive.data + at, archive.size - at);
  archive.size += size;
}

static void
insert (const uint8_t *data, size_t size)
{
  size_t at = begins[mutate_below (member_count + 1)];
  if (size > archive.room - archive.size)
    return;
  open_gap (at, size);
  memcpy (archive.data + at, data, size);
}

static void
insert_fresh (void)
{
  static uint8_t bytes[FRESH_MOST];
  insert (bytes, member_make (bytes));
}

static void
insert_copy (void)
{
  static uint8_t bytes[1 << 16];
  if (member_count == 0)
    return;
  size_t which = mutate_below (member_count);
  size_t size = begins[which + 1] - begins[which];
  if (size > sizeof bytes)
    return;
  memcpy (bytes, archive.data + begins[which], size);
  insert (bytes, size);
}

static void
insert_foreign (void)
{
  size_t blocks = donor_size / BLOCK;
  if (blocks == 0)
    return;
  size_t at = mutate_below (blocks);
  insert (donor + at * BLOCK, (mutate_below (blocks - at) + 1) * BLOCK);
}

static void
cut (void)
{
  archive.size -= mutate_below (archive.size < 2 * BLOCK || mutate_below (4) == 0 ? archive.size : 2 * BLOCK);
}

static void
mend_sums (void)
{
  find_members ();
  for (size_t i = 0; i < member_count; i++)
    if (mutate_below (64) != 0)
      header_close (archive.data + begins[i]);
}

size_t
mutate (uint8_t *data, size_t size, size_t most, const uint8_t *other, size_t other_size)
{
  static void (*const all[]) (void)
      = { change_field, change_field, change_field, change_bytes,   change_digit, remove_member,
          insert_fresh, insert_fresh, insert_copy,  insert_foreign, cut };

  archive = (struct archive){ data, size, most };
  donor = other;
  donor_size = other_size;
  for (size_t n = mutate_below (2) == 0 ? 1 : mutate_below (6) + 1; n > 0; n--)
    {
      find_members ();
      all[mutate_below (sizeof all / sizeof *all)]();
    }
  mend_sums ();
  return archive.size;
}
