// A media service whose work takes time: it says "accepted" at once (202), and
// tells the database when it is done, with the token that came with the call.
// What it has accepted and not finished it takes up again when it is started.
//
//   POST /jobs/KIND {video, seconds}   KIND is transcode, thumbnails or metadata
//   DELETE /jobs/KIND/VIDEO            throw the result away
'use strict';
const { serve } = require('../lib/service');
const { tellUntilHeard } = require('../lib/callback');

const RESULTS = {
  transcode: video => ({ files: [`${video}-720p.mp4`, `${video}-1080p.mp4`] }),
  thumbnails: video => ({ files: [1, 2, 3].map(n => `${video}-${n}.jpg`) }),
  metadata: video => ({ seconds: 10 * video.length, codec: 'h264' }),
};

function work(job) {
  setTimeout(() => {
    if (/broken/.test(job.video) && job.kind === 'transcode') {
      tellUntilHeard("SELECT saga.fail_step(:'token', :'error', 'declined')",
        { token: job.token, error: `cannot read ${job.video}` });
    } else {
      tellUntilHeard("SELECT saga.complete_step(:'token', :'result'::jsonb)",
        { token: job.token, result: JSON.stringify(RESULTS[job.kind](job.video)) });
    }
  }, job.ms);
}

serve({
  'POST /jobs/:kind': ({ params, body, headers }, effects) => {
    if (!RESULTS[params.kind]) return { status: 404, body: { error: 'no such job' } };
    const job = { kind: params.kind, job: 'start', video: body.video, ms: body.ms || 200, token: headers['saga-callback-token'] };
    return { status: 202, effect: job, body: { queued: effects.length }, later: () => work(job) };
  },
  'DELETE /jobs/:kind/:video': ({ params }) =>
    ({ effect: { job: 'remove', kind: params.kind, video: params.video }, body: {} }),
}, effects => {
  // nobody knows which of these had told the database already; the first
  // answer counts there, so all are told again
  effects.filter(e => e.job === 'start').forEach(work);
});
