// Two services in one file, which of them SERVICE_KIND says:
//
//   pdf      POST /documents {document, text}: makes a "PDF", answers its address
//   mailer   POST /emails {to, document, link, ...}
'use strict';
const { serve } = require('../lib/service');

serve(process.env.SERVICE_KIND === 'pdf' ? {
  'POST /documents': ({ body }) => body.text === ''
    ? { status: 422, body: { error: 'nothing to print' } }
    : { effect: { kind: 'pdf', document: body.document, size: body.text.length }, body: { url: `/pdf/${encodeURIComponent(body.document)}` } },
  'DELETE /documents/:document': ({ params }) => ({ effect: { kind: 'delete', document: params.document }, body: {} }),
} : {
  'POST /emails': ({ body }) => ({ effect: { kind: 'mail', ...body }, body: {} }),
});
