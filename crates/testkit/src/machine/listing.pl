# Lists a directory and everything below it, one line each: mode, owner, size, mtime, link count, the first name of
# the same inode, extended attributes, and content, target or device number. Enters no other file system.
#
# The directory itself is without mtime and link count: those of a container's root are the upper directory's.
use strict;
use warnings;
use Digest::SHA;

# x86_64's.
my ($STATX, $LGETXATTR, $LLISTXATTR) = (332, 192, 195);
my ($AT_FDCWD, $AT_SYMLINK_NOFOLLOW, $STATX_BASIC_STATS) = (-100, 0x100, 0x7ff);
my ($S_IFMT, $S_IFREG, $S_IFDIR, $S_IFLNK, $S_IFCHR, $S_IFBLK) =
    (0170000, 0100000, 0040000, 0120000, 0020000, 0060000);
# The kernel's own limit for a value.
my $XATTR_MAX = 65536;
my ($device, %first);

sub visible {
    my ($bytes) = @_;
    $bytes =~ s/([^!-~]|[%,=\[\]])/sprintf "%%%02x", ord $1/ge;
    return $bytes;
}

# The caller's own strings are handed on: the kernel writes into them.
sub call {
    my $result = syscall $_[0], @_[1 .. $#_];
    die "system call $_[0]: $!" if $result < 0;
    return $result;
}

sub xattrs {
    my ($path) = @_;
    my $names = "";
    my $size = call($LLISTXATTR, $path, $names, 0) or return "";
    $names = "\0" x $size;
    call($LLISTXATTR, $path, $names, $size);
    return join ",", map {
        my ($name, $value) = ($_, "\0" x $XATTR_MAX);
        $value = substr $value, 0, call($LGETXATTR, $path, $name, $value, $XATTR_MAX);
        visible($name) . "=" . unpack "H*", $value;
    } sort split /\0/, $names;
}

sub content {
    my ($path) = @_;
    open my $file, "<:raw", $path or die "$path: $!";
    my $digest = Digest::SHA->new(256);
    while (my $length = sysread $file, my $bytes, 1 << 20) {
        $digest->add($bytes);
    }
    return $digest->hexdigest;
}

sub list {
    my ($path, $name) = @_;
    my $stat = "\0" x 256;
    call($STATX, $AT_FDCWD, $path, $AT_SYMLINK_NOFOLLOW, $STATX_BASIC_STATS, $stat);
    my ($links, $uid, $gid, $mode) = unpack "x16 L3 S", $stat;
    my ($inode, $size) = unpack "x32 Q2", $stat;
    my ($seconds, $nanoseconds) = unpack "x112 q L", $stat;
    my ($major, $minor, @device) = unpack "x128 L4", $stat;
    my $type = $mode & $S_IFMT;
    my $is_dir = $type == $S_IFDIR;
    my $id = "@device $inode";
    $first{$id} //= $name;
    my @line = (visible($name || "/"), sprintf("%o", $mode), "$uid:$gid");
    # Of a directory, each file system says another size.
    push @line, "size=$size" if !$is_dir;
    push @line, sprintf("mtime=%d.%09d", $seconds, $nanoseconds), "links=$links" if $name ne "";
    push @line, "first=" . visible($first{$id}) if !$is_dir && $first{$id} ne $name;
    my $xattrs = xattrs($path);
    push @line, "[$xattrs]" if $xattrs;
    push @line, "sha256:" . content($path) if $type == $S_IFREG;
    push @line, "-> " . visible(readlink $path) if $type == $S_IFLNK;
    push @line, "$major:$minor" if $type == $S_IFCHR || $type == $S_IFBLK;
    print "@line\n";
    $device //= "@device";
    return if !$is_dir || $device ne "@device";
    opendir my $entries, $path or die "$name: $!";
    list("$path/$_", "$name/$_") for sort grep { $_ ne "." && $_ ne ".." } readdir $entries;
}

list($ARGV[0], "");
