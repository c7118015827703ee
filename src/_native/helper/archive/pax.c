/* Extended headers: PAX records of an entry, its extended attributes and the records of sparse files. */
#include "number.h"
#include "stream.h"
#include "wire.h"

/* One record "LENGTH KEY=VALUE\n" of an extended header. The first pass replaces its newline by a NUL, which a
   second pass (`again`) has to expect. */
struct record
{
  char *key;
  char *value;
  usize size;
};

static int
next_record (u8 *text, usize size, usize *at, struct record *record, int again)
{
  if (*at == size)
    return 0;
  usize begin = *at;
  u64 length = 0;
  usize digits = 0;
  while (begin + digits < size && text[begin + digits] >= '0' && text[begin + digits] <= '9' && digits < 9)
    length = length * 10 + (u64) (text[begin + digits++] - '0');
  if (digits == 0 || length > size - begin || length < digits + 4 || text[begin + digits] != ' ')
    return -PC_UNPACK_EXTENDED;
  u8 *end = text + begin + length - 1;
  u8 *key = text + begin + digits + 1;
  u8 *equals = key;
  while (equals < end && *equals != '=' && *equals != '\0')
    equals++;
  if (equals == end || *equals != '=' || equals == key || (*end != '\n' && !(again && *end == '\0')))
    return -PC_UNPACK_EXTENDED;
  *end = '\0';
  record->key = (char *) key;
  record->value = (char *) equals + 1;
  record->size = (usize) (end - equals - 1);
  *at = begin + (usize) length;
  return 1;
}

static int
is_key (const struct record *record, const char *key, usize size)
{
  /* The key still ends with its '='. */
  usize n = (usize) (record->value - record->key) - 1;
  return n == size && memcmp (record->key, key, size) == 0;
}

#define IS(record, text) is_key (record, text, sizeof (text) - 1)

static int
sparse_record (struct pc_tar *tar, const struct record *record, struct pc_sparse *sparse, char **name)
{
  u64 value = 0;
  int number = pc_parse_decimal (record->value, record->size, &value);

  if (IS (record, "GNU.sparse.name"))
    {
      if (pc_strlen (record->value) != record->size)
        return -PC_UNPACK_NAME;
      *name = record->value;
      return 1;
    }
  if (IS (record, "GNU.sparse.map"))
    {
      sparse->map = record->value;
      sparse->is_sparse = 1;
      return 1;
    }
  if (number < 0)
    return -PC_UNPACK_SPARSE;
  if (IS (record, "GNU.sparse.size") || IS (record, "GNU.sparse.realsize"))
    {
      sparse->size = value;
      sparse->is_sparse = 1;
    }
  else if (IS (record, "GNU.sparse.major"))
    sparse->major = (u32) value;
  else if (IS (record, "GNU.sparse.offset"))
    {
      sparse->pending = 1;
      return pc_sparse_add (tar, sparse, value, 0);
    }
  else if (IS (record, "GNU.sparse.numbytes"))
    {
      if (!sparse->pending)
        return -PC_UNPACK_SPARSE;
      sparse->pending = 0;
      tar->regions[sparse->count - 1].size = value;
    }
  return 1;
}

static int
apply_record (struct pc_tar *tar, const struct record *record, struct pc_tar_entry *entry, struct pc_sparse *sparse,
              char **sparse_name)
{
  int is_name = IS (record, "path");

  if (is_name || IS (record, "linkpath"))
    {
      if (pc_strlen (record->value) != record->size)
        return -PC_UNPACK_NAME;
      if (record->size > 0)
        *(is_name ? &entry->name : &entry->link) = record->value;
      return 1;
    }
  if (record->size == 0)
    return 1; /* an empty value revokes a global header's; those are not kept */
  if (IS (record, "size"))
    return pc_parse_decimal (record->value, record->size, &entry->stored) < 0 ? -PC_UNPACK_NUMBER : 1;
  if (IS (record, "uid"))
    return pc_parse_decimal (record->value, record->size, &entry->uid) < 0 ? -PC_UNPACK_NUMBER : 1;
  if (IS (record, "gid"))
    return pc_parse_decimal (record->value, record->size, &entry->gid) < 0 ? -PC_UNPACK_NUMBER : 1;
  if (IS (record, "mtime"))
    return pc_parse_time (record->value, record->size, &entry->seconds, &entry->nanoseconds) < 0 ? -PC_UNPACK_NUMBER
                                                                                                 : 1;
  if (record->value - record->key > 11 && memcmp (record->key, "GNU.sparse.", 11) == 0)
    return sparse_record (tar, record, sparse, sparse_name);
  return 1;
}

int
pc_tar_has_data (char type)
{
  return type == PC_TAR_FILE || type == '\0' || type == '7' || type == 'S';
}

int
pc_tar_apply_extended (struct pc_tar *tar, struct pc_tar_entry *entry, struct pc_sparse *sparse)
{
  usize at = 0;
  struct record record;
  char *sparse_name = NULL;
  int more;

  while ((more = next_record (tar->extended, tar->extended_size, &at, &record, 0)) > 0)
    {
      more = apply_record (tar, &record, entry, sparse, &sparse_name);
      if (more < 0)
        return more;
    }
  /* On a file that is not sparse it would be a second name that other readers ignore. */
  if (more == 0 && sparse_name != NULL && sparse->is_sparse && pc_tar_has_data (entry->type))
    entry->name = sparse_name;
  return more < 0 ? more : sparse->pending ? -PC_UNPACK_SPARSE : 1;
}

int
pc_tar_attribute (const struct pc_tar *tar, usize *at, const char **name, const u8 **value, usize *size)
{
  static const char prefix[] = "SCHILY.xattr.";
  struct record record;

  while (next_record (tar->extended, tar->extended_size, at, &record, 1) > 0)
    {
      usize n = (usize) (record.value - record.key) - 1;
      if (n <= sizeof prefix - 1 || memcmp (record.key, prefix, sizeof prefix - 1) != 0)
        continue;
      record.value[-1] = '\0';
      *name = record.key + sizeof prefix - 1;
      *value = (const u8 *) record.value;
      *size = record.size;
      return 1;
    }
  return 0;
}
