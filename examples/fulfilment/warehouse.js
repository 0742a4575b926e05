// The warehouse: PUT /reservations/ORDER {sku, quantity}, DELETE of the same.
'use strict';
const { serve } = require('../lib/service');

const SHELF = { lamp: 400, chair: 60 };

function left(effects, sku) {
  return effects.reduce((n, e) => e.sku !== sku ? n : e.kind === 'reserve' ? n - e.quantity : n + e.quantity, SHELF[sku] || 0);
}

serve({
  'PUT /reservations/:order': ({ params, body }, effects) => left(effects, body.sku) < body.quantity
    ? { status: 409, body: { error: 'out of stock' } }
    : { effect: { kind: 'reserve', order: params.order, ...body }, body: { reserved: body.quantity } },
  // whoever asks for a release that was not needed has what he asked for
  'DELETE /reservations/:order': ({ params }, effects) => {
    const held = effects.filter(e => e.order === params.order);
    if (held.length !== 1) return { body: { released: 0 } };
    return { effect: { kind: 'release', order: params.order, sku: held[0].sku, quantity: held[0].quantity }, body: { released: held[0].quantity } };
  },
});
