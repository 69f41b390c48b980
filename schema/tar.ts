/** Archives as tar has them: the ustar format of POSIX.1-1988, which every tar reads. */

const BLOCK_BYTES = 512;
const MAX_NAME_CHARS = 100;
/** Eleven octal digits: 8 GiB. */
const MAX_FILE_BYTES = 8 ** 11 - 1;

/** What ends an archive: two blocks of zeros. */
export const TAR_END = new Uint8Array(2 * BLOCK_BYTES);

/** The fields of a header that are not zeros: name, offset, and what stands there. */
type Field = readonly [offset: number, text: string];

/**
 * The header of a file, which its content follows.
 *
 * @param name At most 100 characters of ASCII.
 * @param bytes How long the content is.
 * @param atS When it was made, in Unix seconds.
 * @returns one block of 512 bytes.
 * @throws {RangeError} for a name or a size that the format has no room for.
 */
export function tarHeader(name: string, bytes: number, atS: number): Uint8Array<ArrayBuffer> {
  if (!/^[\x21-\x7e]+$/.test(name) || name.length > MAX_NAME_CHARS) {
    throw new RangeError(`not a name for a file of an archive: ${name}`);
  }
  if (bytes > MAX_FILE_BYTES) throw new RangeError('too long for a file of an archive');
  const block = new Uint8Array(BLOCK_BYTES);
  const fields: Field[] = [
    [0, name],
    [100, octal(0o600, 7)],
    [108, octal(0, 7)],
    [116, octal(0, 7)],
    [124, octal(bytes, 11)],
    [136, octal(atS, 11)],
    [148, ' '.repeat(8)],
    [156, '0'],
    [257, 'ustar'],
    [263, '00'],
  ];
  for (const [offset, text] of fields) write(block, offset, text);
  // The sum is over the block with spaces in place of the sum.
  const sum = block.reduce((total, byte) => total + byte, 0);
  write(block, 148, `${octal(sum, 6)}\0 `);
  return block;
}

/** The zeros that fill the last block of a content. */
export function tarPadding(bytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array((BLOCK_BYTES - (bytes % BLOCK_BYTES)) % BLOCK_BYTES);
}

function octal(value: number, digits: number): string {
  return Math.floor(value).toString(8).padStart(digits, '0');
}

function write(block: Uint8Array, offset: number, text: string): void {
  for (let at = 0; at < text.length; at++) block[offset + at] = text.charCodeAt(at);
}
