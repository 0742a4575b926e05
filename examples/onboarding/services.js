// The mail service of the onboarding: POST /welcome, POST /notifications, and
// POST /apologies, which is how a mail is undone.
'use strict';
const { serve } = require('../lib/service');

const mail = kind => ({ body }) => /@/.test(body.to)
  ? { effect: { kind, ...body }, body: { accepted: true } }
  : { status: 422, body: { error: `"${body.to}" is no address` } };

serve({
  'POST /welcome': mail('welcome'),
  'POST /apologies': mail('apology'),
  'POST /notifications': mail('notification'),
});
