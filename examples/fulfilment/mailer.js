// The mail service: POST /emails {to, subject, ...}
'use strict';
const { serve } = require('../lib/service');

serve({
  'POST /emails': ({ body }, sent) => {
    if (!body || !/@/.test(body.to)) return { status: 422, body: { error: 'no such address' } };
    return { effect: { kind: 'mail', ...body }, body: { message: sent.length + 1 } };
  },
});
