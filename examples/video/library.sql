-- The video library: its videos, the participants, and the saga over them.
\set ON_ERROR_STOP 1
CREATE ROLE library_owner NOLOGIN;
GRANT saga_user TO library_owner;
CREATE SCHEMA library AUTHORIZATION library_owner;

CREATE SERVER transcoder FOREIGN DATA WRAPPER saga_http OPTIONS (url :'transcoder', allow_private 'true');
CREATE SERVER thumbnailer FOREIGN DATA WRAPPER saga_http OPTIONS (url :'thumbnailer', allow_private 'true');
CREATE SERVER analyser FOREIGN DATA WRAPPER saga_http OPTIONS (url :'analyser', allow_private 'true');
GRANT USAGE ON FOREIGN SERVER transcoder, thumbnailer, analyser TO library_owner;
CREATE USER MAPPING FOR library_owner SERVER transcoder;
CREATE USER MAPPING FOR library_owner SERVER thumbnailer;
CREATE USER MAPPING FOR library_owner SERVER analyser;

SET SESSION AUTHORIZATION library_owner;
CREATE TABLE library.video (
  name    text PRIMARY KEY,
  status  text NOT NULL DEFAULT 'uploaded',
  files   jsonb,
  seconds integer
);
CREATE TABLE library.event (
  name  text NOT NULL,
  video text NOT NULL,
  at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

SELECT saga.define('video_processing',
  input => 'video text',
  steps => ARRAY[
    saga.parallel(
      saga.step('transcode', server => 'transcoder', callback => true, callback_timeout => '10 s',
        action       => 'POST /jobs/transcode {"video": :video, "ms": 600}',
        compensation => 'DELETE /jobs/transcode/:video'),
      saga.step('thumbnails', server => 'thumbnailer', callback => true, callback_timeout => '10 s',
        action       => 'POST /jobs/thumbnails {"video": :video, "ms": 300}',
        compensation => 'DELETE /jobs/thumbnails/:video'),
      saga.step('metadata', server => 'analyser', callback => true, callback_timeout => '10 s',
        action       => 'POST /jobs/metadata {"video": :video, "ms": 100}',
        compensation => 'DELETE /jobs/metadata/:video')),
    saga.step('publish', pivot => true,
      action => 'UPDATE library.video SET files = :transcode.files::jsonb, seconds = :metadata.seconds::integer WHERE name = :video'),
    saga.step('event',
      action => 'INSERT INTO library.event (name, video) VALUES (''VideoProcessed'', :video)')],
  on_completed   => 'UPDATE library.video SET status = ''published'' WHERE name = :video',
  on_compensated => 'UPDATE library.video SET status = ''rejected'' WHERE name = :video');

CREATE FUNCTION library.upload(name text) RETURNS uuid
LANGUAGE sql AS $$
  INSERT INTO library.video (name) VALUES ($1);
  SELECT saga.start('video_processing', jsonb_build_object('video', $1), key => $1);
$$;
