// Where the reviewer's click arrives:
//
//   POST /decision/DOCUMENT {verdict: "approved" | "rejected", by, click}
//
// It signals the saga of that document.  "click" names the click, so that one
// that is sent twice counts once.
'use strict';
const { serve } = require('../lib/service');
const { tell } = require('../lib/callback');

serve({
  'POST /decision/:document': async ({ params, body }) => {
    const heard = await tell(
      "SELECT saga.signal_key('document_approval', :'document', 'decision', :'payload'::jsonb, signal_id => :'click')",
      { document: params.document, payload: JSON.stringify({ verdict: body.verdict, by: body.by }), click: body.click });
    return { body: { heard: heard === 't' } };
  },
});
