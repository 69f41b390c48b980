/** Numbers as JSON writes them, and the doubles that they are read as. */

const STRINGS_AND_NUMBERS = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g;
/** As many digits as any decimal can have and still come back from a double unchanged. */
const SAFE_DIGITS = 15;

/** Whether every number of a JSON text is, digit for digit, the double that it is read as. */
export function isFaithful(text: string): boolean {
  for (const [token] of text.matchAll(STRINGS_AND_NUMBERS)) {
    if (!token.startsWith('"') && !isExact(token)) return false;
  }
  return true;
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
  const kept = digits.replace(/0+$/, '');
  if (kept === '') return '0';
  return `${kept}e${Number(exponent) - fraction.length + digits.length - kept.length}`;
}
