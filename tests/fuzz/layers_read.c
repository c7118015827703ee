/* The reader alone: every entry, every attribute, every byte, and what must hold of them. */
#include "layers.h"
#include "unpack.h"

#include <string.h>

static struct reading reading;

static void
note (const void *data, usize size)
{
  const u8 *bytes = data;
  for (usize i = 0; i < size; i++)
    reading.hash = (reading.hash ^ bytes[i]) * 0x100000001b3ull;
}

static void
check_regions (const struct pc_tar_entry *entry)
{
  u64 at = 0;
  u64 sum = 0;
  for (u32 i = 0; i < entry->region_count; i++)
    {
      const struct pc_tar_region *region = &entry->regions[i];
      REQUIRE (region->offset >= at && region->offset <= entry->size);
      REQUIRE (region->size <= entry->size - region->offset);
      at = region->offset + region->size;
      sum += region->size;
    }
  REQUIRE (!entry->sparse || sum == entry->stored);
  REQUIRE (entry->sparse || entry->size == entry->stored);
  note (entry->regions, entry->region_count * sizeof *entry->regions);
}

static void
check_entry (const struct pc_tar_entry *entry)
{
  REQUIRE (strlen (entry->name) < PC_TAR_NAME_MOST && strlen (entry->link) < PC_TAR_NAME_MOST);
  REQUIRE (entry->mode <= 07777 && entry->nanoseconds < 1000000000);
  REQUIRE (entry->uid <= 0xfffffffe && entry->gid <= 0xfffffffe);
  REQUIRE (entry->size <= 1ull << 62 && entry->stored <= 1ull << 62);
  note (&entry->type, 1);
  note (&entry->mode, sizeof entry->mode);
  note (&entry->uid, sizeof entry->uid);
  note (&entry->gid, sizeof entry->gid);
  note (&entry->size, sizeof entry->size);
  note (&entry->seconds, sizeof entry->seconds);
  note (&entry->nanoseconds, sizeof entry->nanoseconds);
  note (&entry->major, sizeof entry->major);
  note (&entry->minor, sizeof entry->minor);
  note (entry->name, strlen (entry->name) + 1);
  note (entry->link, strlen (entry->link) + 1);
  check_regions (entry);
}

static void
read_attributes (const struct pc_tar *tar)
{
  usize at = 0;
  const char *name;
  const u8 *value;
  usize size;
  while (pc_tar_attribute (tar, &at, &name, &value, &size))
    {
      note (name, strlen (name) + 1);
      note (value, size);
    }
}

static int
read_data (struct pc_tar *tar, u64 wanted, int is_all)
{
  u64 got_all = 0;
  while (got_all < wanted)
    {
      const u8 *data;
      word got = pc_tar_data (tar, is_all ? wanted : 100, &data);
      if (got < 0)
        return (int) got;
      if (got == 0)
        break;
      if (is_all)
        note (data, (usize) got);
      got_all += (u64) got;
    }
  REQUIRE (!is_all || got_all == wanted);
  return 0;
}

/* Each buffer is its own allocation, so that an overflow does not end in the next buffer. */
static void
open_apart (struct pc_tar *tar, u8 *memory, u8 **buffer, u8 **extended, struct pc_tar_region **regions)
{
  pc_tar_open (tar, STREAM_FD, memory);
  tar->buffer = *buffer = malloc (PC_TAR_BUFFER);
  tar->extended = *extended = malloc (PC_TAR_EXTENDED_MOST + 1);
  tar->regions = *regions = malloc (PC_TAR_REGIONS_MOST * sizeof **regions);
  REQUIRE (*buffer != NULL && *extended != NULL && *regions != NULL);
}

struct reading
read_layer (u32 part)
{
  static struct pc_tar tar;
  static u8 memory[PC_TAR_MEMORY] __attribute__ ((aligned (16)));
  struct pc_tar_entry entry;
  u8 *buffer, *extended;
  struct pc_tar_region *regions;
  int more;

  reading = (struct reading){ .hash = 0xcbf29ce484222325ull };
  open_apart (&tar, memory, &buffer, &extended, &regions);
  while ((more = pc_tar_next (&tar, &entry)) > 0)
    {
      reading.entries++;
      reading.bytes += entry.size;
      reading.looks_implied |= (entry.mode & 05777) == PC_IMPLIED_MODE;
      check_entry (&entry);
      more = read_data (&tar, entry.stored / 2 * part, part == 2 && entry.stored % 2 == 0);
      if (more < 0)
        break;
      read_attributes (&tar);
    }
  if (more == 0)
    more = pc_tar_drain (&tar);
  REQUIRE (more <= 0 && -more < PC_UNPACK_PROBLEM_COUNT);
  reading.result = more;
  free (buffer);
  free (extended);
  free (regions);
  return reading;
}
