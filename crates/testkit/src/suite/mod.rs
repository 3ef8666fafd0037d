//! One set of behaviours of a virtio-fs daemon, run against ours and against the genuine nydusd 2.2.0.
//!
//! [`BEHAVIOURS`] is the table: what each is called, and whether the genuine daemon shows it too. Where
//! it does not, the reason stands there; that table is the list of differences. Each behaviour is a
//! function that panics if the daemon behaves otherwise. Next: [`fixture`].

mod absent;
mod api;
mod cold;
mod cold_faults;
mod files;
pub mod fixture;
mod gate;
mod hostile;
mod hostile_images;
mod images;
pub mod mapped;
mod metrics;
mod names;
mod prefetch;
mod sessions;
mod shares;
pub mod small_disk;
mod startup;
mod trace;

use crate::daemon::Program;
use crate::leak::LeakGuard;
use crate::peers::Skip;
use fixture::Fixture;

/// Whom a behaviour is expected of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// Both daemons.
    Both,
    /// Ours; the genuine one is not even asked.
    OursOnly {
        /// What nydusd 2.2.0 does instead.
        reason: &'static str,
    },
}

/// One behaviour.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// Its name: a sentence.
    pub name: &'static str,
    /// Whom it is expected of.
    pub expectation: Expectation,
    run: fn(&Fixture) -> Result<(), Skip>,
}

const fn both(name: &'static str, run: fn(&Fixture) -> Result<(), Skip>) -> Behaviour {
    Behaviour {
        name,
        expectation: Expectation::Both,
        run,
    }
}

const fn ours(name: &'static str, reason: &'static str, run: fn(&Fixture) -> Result<(), Skip>) -> Behaviour {
    Behaviour {
        name,
        expectation: Expectation::OursOnly { reason },
        run,
    }
}

const ONE_CONNECTION: &str = "it serves one vhost-user connection and then no other";
const ONE_INIT: &str = "it answers EINVAL to a second FUSE_INIT without FUSE_DESTROY";
const DIES: &str = "its queue worker ends at the first message it cannot answer, and the guest hangs";
const ONE_WORKER: &str = "one worker holds one lock over the whole queue, backend reads included";
const NO_FIGURES: &str =
    "it has no figures for Prometheus, none of shares, and keeps those of unmounted images";
const UNLISTED: &str = "its FUSE library answers ENOSYS";
const TRUNCATED: &str =
    "it maps its cache files, believes its chunk map, and dies or answers with what is left";
const RECORDS_NOTHING: &str = "it has no such record: its access pattern has neither names nor offsets";
const PREFETCHES_ALONG: &str = "it fetches neighbours along, and some of it twice";
const KNOWS_NO_PROGRAM: &str = "it cannot be told what will be started";
const HANGS_AT_STOP: &str = "it hangs at SIGTERM until its VMM has left, and for ever if none came";

/// Every behaviour, and the differences between the two daemons.
pub const BEHAVIOURS: &[Behaviour] = &[
    both("api_tells_version_and_state", api::tells_version_and_state),
    both("api_lists_mounts", api::lists_mounts),
    both(
        "api_refuses_a_second_mount_at_the_same_place",
        api::refuses_a_second_mount,
    ),
    both(
        "api_refuses_to_unmount_what_is_not_there",
        api::refuses_to_unmount_nothing,
    ),
    both(
        "api_refuses_a_bad_configuration",
        api::refuses_a_bad_configuration,
    ),
    both(
        "api_refuses_an_unknown_type_of_file_system",
        api::refuses_an_unknown_type,
    ),
    both("api_refuses_a_bad_bootstrap", api::refuses_a_bad_bootstrap),
    both("api_refuses_bad_requests_by_status", api::refuses_bad_requests),
    both("api_unmounts_and_mounts_again", api::unmounts_and_mounts_again),
    both(
        "api_takes_mounts_at_the_same_time",
        api::takes_mounts_at_the_same_time,
    ),
    ours(
        "api_takes_a_body_of_a_mebibyte",
        "it refuses bodies over 51200 bytes and answers with invalid JSON",
        api::takes_a_large_body,
    ),
    both(
        "api_answers_while_a_mount_waits_for_its_backend",
        gate::api_answers_while_a_mount_waits,
    ),
    both("files_are_written_and_read_at_any_offset", files::data),
    both("files_have_holes_and_preallocation", files::holes),
    both("files_keep_attributes", files::attributes),
    both("files_keep_extended_attributes", files::xattrs),
    both("files_belong_to_their_creator", files::ownership),
    both("files_stay_readable_after_unlink", files::unlinked_but_open),
    both(
        "files_move_in_requests_of_a_mebibyte_64_at_once",
        files::many_in_flight,
    ),
    both("names_are_made_moved_and_removed", names::namespace),
    both("names_lead_to_the_right_errnos", names::errnos),
    both("names_are_listed_completely_and_resumably", names::listing),
    both("names_do_not_lead_out_of_the_share", names::no_way_out),
    ours(
        "files_are_copied_on_the_host",
        UNLISTED,
        shares::copied_on_the_host,
    ),
    ours(
        "files_of_two_mounts_are_on_two_devices",
        "it answers EINVAL to a rename or link between them",
        shares::other_devices,
    ),
    both(
        "files_of_a_mount_at_the_root_are_on_one_device",
        shares::root_is_no_other_device,
    ),
    ours("files_are_synced_when_the_guest_syncs", UNLISTED, shares::synced),
    ours("files_without_a_name_get_one", UNLISTED, shares::nameless),
    ours(
        "files_without_a_name_are_made_at_the_root_too",
        UNLISTED,
        shares::nameless_at_the_root,
    ),
    ours(
        "files_are_made_where_a_group_of_their_creator_may",
        "it takes no supplementary groups from the guest",
        shares::supplementary_groups,
    ),
    ours(
        "files_have_attributes_of_any_name",
        "it takes them for names of files",
        shares::attributes_of_any_name,
    ),
    ours(
        "files_beyond_the_daemons_limit_are_refused",
        "it is ended by the signal",
        shares::limit_of_file_sizes,
    ),
    ours(
        "files_are_read_only_if_the_mount_says_so",
        "it has no read-only shares",
        shares::read_only,
    ),
    ours(
        "metrics_count_what_the_guest_asked",
        NO_FIGURES,
        metrics::count_what_was_asked,
    ),
    ours(
        "metrics_show_what_is_held",
        NO_FIGURES,
        metrics::show_what_is_held,
    ),
    ours(
        "metrics_go_with_their_mount",
        NO_FIGURES,
        metrics::go_with_their_mount,
    ),
    both(
        "image_v5_has_every_file_of_its_source",
        images::v5_equals_its_source,
    ),
    both(
        "image_v6_has_every_file_of_its_source",
        images::v6_equals_its_source,
    ),
    both("image_keeps_extended_attributes", images::xattrs),
    both("image_is_read_only", images::read_only),
    ours(
        "image_switches_nothing_off_for_shares",
        "it answers ENOSYS, and FLUSH, FSYNC and the like end for all mounts",
        absent::switches_nothing_off,
    ),
    ours(
        "image_has_no_name_of_more_than_255_bytes",
        "it looks for whatever it is asked for",
        images::names_end,
    ),
    ours(
        "image_shows_the_time_of_a_file_of_1970",
        "it takes that for no time, and shows that of the mount",
        images::of_1970,
    ),
    ours(
        "image_is_remounted_as_a_whole_or_not_at_all",
        "it has the new metadata before it has what they are about",
        images::remounted,
    ),
    both("image_reads_64_at_once", images::many_in_flight),
    ours(
        "image_v5_reads_small_and_widened",
        "it sends widened reads of RAFS v5 to the guest and answers EIO for want of room",
        images::v5_small_reads,
    ),
    both("image_is_served_over_http_proxy", images::over_http_proxy),
    both("image_is_served_from_a_registry", images::from_a_registry),
    both(
        "image_never_shows_wrong_data_of_a_faulty_backend",
        images::faulty_backend,
    ),
    ours(
        "image_with_a_blob_elsewhere_is_not_mounted",
        "it makes names of files and requests of whatever an image calls its blobs",
        hostile_images::blob_elsewhere,
    ),
    ours(
        "image_whose_bootstrap_is_truncated_fails_and_no_other_does",
        "it maps the bootstrap and dies of SIGBUS",
        hostile_images::truncated_bootstrap,
    ),
    ours(
        "image_mounts_end_at_255_with_a_clear_message",
        "its message is the Debug form of an internal error",
        images::two_hundred_and_fifty_five,
    ),
    ours("guest_reboots_without_destroy", ONE_INIT, sessions::reboot),
    ours(
        "guest_gets_all_it_can_use_after_one_that_could_little",
        ONE_INIT,
        sessions::firmware_first,
    ),
    ours(
        "guest_reboots_with_requests_in_flight",
        ONE_INIT,
        sessions::reboot_in_flight,
    ),
    ours(
        "guest_leaves_and_a_new_one_comes",
        ONE_CONNECTION,
        sessions::reconnect,
    ),
    ours(
        "guest_uses_several_request_queues",
        "it has one request queue",
        sessions::several_queues,
    ),
    both(
        "guest_needs_neither_event_idx_nor_indirect_descriptors",
        sessions::plain_rings,
    ),
    ours(
        "guest_sends_hostile_chains_and_is_served_on",
        DIES,
        hostile::chains,
    ),
    ours(
        "guest_sends_hostile_chains_on_the_hiprio_queue",
        DIES,
        hostile::hiprio_chains,
    ),
    ours("guest_jumps_its_available_index", DIES, hostile::index_jump),
    ours("guest_sends_headers_that_deserve_an_errno", DIES, hostile::errnos),
    ours(
        "guest_asks_for_more_than_there_can_be",
        "it allocates an answer of whatever size the guest names",
        hostile::huge_answers,
    ),
    ours("guest_does_not_write_the_log", DIES, hostile::little_log),
    both("guest_reuses_closed_handles", hostile::stale_handles),
    both(
        "guest_cannot_close_descriptors_of_the_daemon",
        hostile::borrowed_descriptors,
    ),
    ours(
        "frontend_sends_garbage_and_the_next_is_served",
        ONE_CONNECTION,
        hostile::garbage,
    ),
    ours(
        "frontend_breaks_off_in_the_middle",
        ONE_CONNECTION,
        hostile::break_off,
    ),
    ours(
        "held_reads_do_not_delay_a_getattr",
        ONE_WORKER,
        gate::held_reads_delay_nothing,
    ),
    ours(
        "cold_daemons_share_what_they_fetch",
        "each daemon fetches for itself what another is fetching into the same cache",
        cold::daemons_share_what_they_fetch,
    ),
    ours(
        "cold_reader_in_order_is_fetched_ahead_of",
        "it fetches what is asked for, when it is asked for",
        cold::reader_in_order_is_fetched_ahead_of,
    ),
    both(
        "cold_reader_here_and_there_costs_its_chunks",
        cold::reader_here_and_there_costs_its_chunks,
    ),
    both(
        "cold_killed_daemon_holds_nobody_up",
        cold::killed_daemon_holds_nobody_up,
    ),
    ours(
        "cold_cache_without_room_does_not_fail_reads",
        "its events do not tell that the cache is full",
        cold::cache_without_room_does_not_fail_reads,
    ),
    ours(
        "cold_cache_files_are_opened_once_and_only_data_is_mapped",
        "it maps the chunk map and the table of chunks",
        mapped::cache_files_are_opened_once_and_only_data_is_mapped,
    ),
    ours(
        "cold_cache_cut_while_it_is_read_gives_no_wrong_byte",
        TRUNCATED,
        mapped::cache_cut_while_it_is_read_gives_no_wrong_byte,
    ),
    both(
        "cold_cache_replaced_while_it_is_read_gives_no_wrong_byte",
        mapped::cache_replaced_while_it_is_read_gives_no_wrong_byte,
    ),
    ours(
        "cold_cache_is_let_go_by_reads_that_an_unmount_overtakes",
        "it maps the chunk map and the table of chunks until all of it is closed",
        mapped::cache_is_let_go_by_reads_that_an_unmount_overtakes,
    ),
    ours(
        "cold_cache_truncated_under_the_daemon_is_filled_again",
        TRUNCATED,
        cold::cache_truncated_under_the_daemon_is_filled_again,
    ),
    ours(
        "cold_cache_that_a_power_cut_emptied_is_filled_again",
        TRUNCATED,
        cold::cache_that_a_power_cut_emptied_is_filled_again,
    ),
    both(
        "cold_cache_with_wrong_bytes_is_found_out_and_filled_again",
        cold::cache_with_wrong_bytes_is_found_out_and_filled_again,
    ),
    ours(
        "cold_cache_that_is_not_the_images_is_found_out_by_the_next_daemon",
        "it compares what is cached only if it is asked to, and then each time",
        cold::cache_that_is_not_the_images_is_found_out_by_the_next_daemon,
    ),
    both(
        "cold_content_that_is_not_the_images_fails_the_read",
        cold::content_that_is_not_the_images_fails_the_read,
    ),
    both(
        "cold_cache_of_v6_with_wrong_bytes_is_found_out_and_filled_again",
        cold::cache_of_v6_with_wrong_bytes_is_found_out_and_filled_again,
    ),
    both(
        "cold_content_that_is_not_a_v6_images_fails_the_read",
        cold::content_that_is_not_a_v6_images_fails_the_read,
    ),
    ours(
        "cold_content_that_is_not_a_plain_v6_images_fails_the_read",
        "it knows no digests but those in a blob, and gives the guest what came",
        cold::content_that_is_not_a_plain_v6_images_fails_the_read,
    ),
    ours(
        "cold_batches_are_shared",
        "it does not know blobs of batches",
        cold_faults::batches_are_shared,
    ),
    ours(
        "cold_batches_are_read_from_their_middle",
        "it does not know blobs of batches",
        cold_faults::batches_are_read_from_their_middle,
    ),
    both("cold_zran_blobs_are_shared", cold_faults::zran_blobs_are_shared),
    ours(
        "cold_batches_outlive_faults_and_truncation",
        TRUNCATED,
        cold_faults::batches_outlive_faults,
    ),
    ours(
        "cold_zran_blobs_outlive_faults_and_truncation",
        TRUNCATED,
        cold_faults::zran_blobs_outlive_faults,
    ),
    ours(
        "cold_zran_blob_that_is_too_short_fails_the_read",
        "its events do not tell why a read failed",
        cold_faults::zran_blob_that_is_too_short_fails_the_read,
    ),
    ours(
        "cold_packed_blobs_without_room_fail_until_there_is_some",
        "its events do not tell why a read failed",
        cold_faults::packed_blobs_without_room_fail_until_there_is_some,
    ),
    ours(
        "cold_table_that_was_not_to_be_had_is_asked_for_again",
        "it asks for it five times when it mounts, and never again",
        cold_faults::table_that_was_not_to_be_had_is_asked_for_again,
    ),
    ours(
        "cold_table_damaged_in_the_cache_is_fetched_again",
        "it believes whatever has the right length",
        cold_faults::table_damaged_in_the_cache_is_fetched_again,
    ),
    ours(
        "cold_table_of_another_image_in_the_cache_is_fetched_again",
        "it believes whatever has the right length",
        cold_faults::table_of_another_image_is_fetched_again,
    ),
    ours(
        "cold_mount_that_needs_room_on_a_full_disk_is_refused_and_the_others_go_on",
        "it does not say that the disk is full",
        cold_faults::mount_that_needs_room_on_a_full_disk_is_refused_and_the_others_go_on,
    ),
    ours(
        "prefetch_takes_the_files_that_the_mount_names",
        PREFETCHES_ALONG,
        prefetch::files_named_by_the_mount,
    ),
    ours(
        "prefetch_takes_the_files_that_the_image_names",
        PREFETCHES_ALONG,
        prefetch::files_named_by_the_image,
    ),
    ours(
        "prefetch_takes_everything_if_asked_to",
        PREFETCHES_ALONG,
        prefetch::everything_if_asked_for,
    ),
    ours(
        "prefetch_never_goes_before_a_reader",
        "its prefetching does not know who waits",
        prefetch::never_before_a_reader,
    ),
    ours(
        "startup_fetches_what_a_program_needs",
        KNOWS_NO_PROGRAM,
        startup::what_a_program_needs,
    ),
    ours(
        "startup_leaves_it_to_an_image_that_knows_better",
        KNOWS_NO_PROGRAM,
        startup::not_where_the_image_knows_better,
    ),
    ours(
        "trace_has_what_is_read_first_of_v5",
        RECORDS_NOTHING,
        trace::of_what_is_read_first_v5,
    ),
    ours(
        "trace_has_what_is_read_first_of_v6",
        RECORDS_NOTHING,
        trace::of_what_is_read_first_v6,
    ),
    ours(
        "stops_before_a_guest_came",
        HANGS_AT_STOP,
        sessions::stop_never_connected,
    ),
    ours(
        "stops_with_a_guest_connected",
        HANGS_AT_STOP,
        sessions::stop_connected,
    ),
    both("stops_after_the_guest_left", sessions::stop_after_it_left),
    ours("stops_by_its_api", HANGS_AT_STOP, sessions::stop_by_api),
    ours(
        "stops_while_reads_are_held",
        ONE_WORKER,
        gate::stops_while_reads_are_held,
    ),
];

/// Runs one behaviour against one daemon, and then looks for what was left behind.
///
/// # Panics
/// If the daemon behaves otherwise, if something was left, or if there is no such behaviour.
pub fn run(name: &str, program: &Program) {
    let Some(behaviour) = BEHAVIOURS.iter().find(|b| b.name == name) else {
        panic!("the suite has no behaviour {name}");
    };
    let fixture = Fixture::new(program);
    // Sockets stay when a daemon is killed, as most here are: those have a behaviour of their own.
    let _guard = LeakGuard::new(&fixture.path("left-behind"));
    // A skip has been printed where it was found.
    let _skipped = (behaviour.run)(&fixture);
}

/// Asserts that a behaviour expected of ours only is really not the genuine daemon's: the reason in the
/// table would be wrong otherwise. Slow, because much of what nydusd does instead is to hang.
///
/// # Panics
/// If nydusd behaves as ours does, or if there is no such behaviour.
pub fn assert_differs(name: &str, nydusd: &Program) {
    let Some(behaviour) = BEHAVIOURS.iter().find(|b| b.name == name) else {
        panic!("the suite has no behaviour {name}");
    };
    let fixture = Fixture::new(nydusd);
    let run = std::panic::AssertUnwindSafe(|| (behaviour.run)(&fixture));
    assert!(
        std::panic::catch_unwind(run).is_err(),
        "nydusd behaves like ours: {behaviour:?}"
    );
}
