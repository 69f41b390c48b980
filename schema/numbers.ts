/** Numbers as JSON writes them, and the doubles that they are read as. */

const NUMBERS = /-?\d[\d.eE+-]*/g;
/** As many digits as any decimal can have and still come back from a double unchanged. */
const SAFE_DIGITS = 15;

/** Whether every number of a JSON text is, digit for digit, the double that it is read as. */
export function isFaithful(text: string): boolean {
  let at = 0;
  while (at < text.length) {
    const quote = text.indexOf('"', at);
    const end = quote < 0 ? text.length : quote;
    for (const [number] of text.slice(at, end).matchAll(NUMBERS)) {
      if (!isExact(number)) return false;
    }
    at = endOfString(text, end);
  }
  return true;
}

/** Behind a string that begins with a quote. Texts are too long for expressions that backtrack. */
function endOfString(text: string, quote: number): number {
  let end = text.indexOf('"', quote + 1);
  while (end >= 0 && isEscaped(text, end)) end = text.indexOf('"', end + 1);
  return end < 0 ? text.length : end + 1;
}

function isEscaped(text: string, at: number): boolean {
  let start = at;
  while (text[start - 1] === '\\') start -= 1;
  return (at - start) % 2 === 1;
}

/** Whether a decimal number is, digit for digit, the double that it is read as. */
export function isExact(number: string): boolean {
  // Only an exponent takes so few digits to where doubles have fewer, or none.
  if (number.length <= SAFE_DIGITS && !/e/i.test(number)) return true;
  return digitsOf(number) === digitsOf(String(Number(number)));
}

/** The digits of a number and the place of its point, however it is written. */
function digitsOf(number: string): string {
  const [mantissa = '', exponent = '0'] = number.toLowerCase().replace(/^[+-]/, '').split('e');
  const [whole = '', fraction = ''] = mantissa.split('.');
  const digits = (whole + fraction).replace(/^0+/, '');
  if (digits === '') return '0';
  let end = digits.length;
  while (digits[end - 1] === '0') end -= 1;
  return `${digits.slice(0, end)}e${Number(exponent) - fraction.length + digits.length - end}`;
}
