/** The direction of lists whose order can be chosen. */

import { builder } from './builder.ts';

/** Which end of a list comes first; true for the descending one. */
export const OrderDirection = builder.enumType('OrderDirection', {
  description: 'Which end of a list comes first.',
  values: {
    ASC: { value: false, description: 'The smallest or oldest.' },
    DESC: { value: true, description: 'The largest or newest.' },
  } as const,
});
